"""Debian's documentation: which files are for reading, and the licence of the package a file is from."""

import re
from functools import cached_property
from pathlib import Path

from tapwater.data.files import suffix_of

_NOT_READING = re.compile(r"(?i)^(changelog|copyright|licen[cs]e|copying|news\.debian|authors|contributors|thanks)")
_READING_SUFFIXES = ("", ".txt", ".text", ".md", ".rst", ".debian")
_STANZA_OF_ALL = re.compile(r"^Files:\s*\*\s*$.*?^License:[ \t]*(\S[^\n]*)$", re.MULTILINE | re.DOTALL)
_LICENCE = re.compile(r"^License:[ \t]*(\S[^\n]*)$", re.MULTILINE)


def is_reading(path: Path) -> bool:
    """READMEs and guides, not changelogs and copyright notices, nor the files of examples."""
    return (
        suffix_of(path.name) in _READING_SUFFIXES and not _NOT_READING.match(path.name) and "examples" not in path.parts
    )


class PackageLicences:
    """Licences by /usr/share/doc/<package>/copyright, where that is machine-readable (DEP 5); else `otherwise`."""

    def __init__(self, otherwise: str, root: Path = Path("/")) -> None:
        self._otherwise = otherwise
        self._licences: dict[Path, str] = {}
        self._share, self._lists = root / "usr/share", root / "var/lib/dpkg/info"

    def of_documentation(self, path: Path) -> str:
        """Of a file below some share/doc/<package>."""
        parts = path.absolute().parts
        if "doc" not in parts or parts.index("doc") + 2 > len(parts):
            return self._otherwise
        return self._of_package(Path(*parts[: parts.index("doc") + 2]))

    def of_page(self, path: Path) -> str:
        """Of a manual page, by the lists of files that dpkg keeps."""
        package = self._package_of.get(str(path))
        return self._of_package(self._share / "doc" / package) if package else self._otherwise

    def _of_package(self, directory: Path) -> str:
        if directory not in self._licences:
            file = directory / "copyright"
            notice = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
            self._licences[directory] = licence_in(notice) or self._otherwise
        return self._licences[directory]

    @cached_property
    def _package_of(self) -> dict[str, str]:
        pages = {}
        for file in self._lists.glob("*.list"):
            package = file.stem.partition(":")[0]
            for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
                if "/man/" in line:
                    pages[line] = package
        return pages


def licence_in(notice: str) -> str | None:
    """The short name that a machine-readable copyright file gives to all files, else its first; else None."""
    if not notice.startswith("Format"):
        return None
    match = _STANZA_OF_ALL.search(notice) or _LICENCE.search(notice)
    return match.group(1).strip() if match else None
