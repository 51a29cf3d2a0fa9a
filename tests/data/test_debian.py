"""Licences of manual pages and documentation, as Debian's packages say them."""

from pathlib import Path

import pytest

from tapwater.data.debian import PackageLicences, is_reading, licence_in

NOTICE = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: cat

Files: src/odd.c
License: BSD-2-Clause

Files: *
Copyright: 2001 Somebody
License: GPL-3+
 The text of it.
"""


def system(root: Path) -> Path:
    """Two installed packages with a page each, one of them without a notice a machine can read."""
    for package, notice in (("cat", NOTICE), ("dog", "It was packaged by somebody.\nLicense: of one's own\n")):
        documentation = root / "usr/share/doc" / package
        documentation.mkdir(parents=True)
        (documentation / "copyright").write_text(notice)
    lists = root / "var/lib/dpkg/info"
    lists.mkdir(parents=True)
    (lists / "cat:amd64.list").write_text("/.\n/usr/share/man\n/usr/share/man/man1/cat.1.gz\n/usr/bin/cat\n")
    (lists / "dog.list").write_text("/usr/share/man/zh_CN/man1/dog.1.gz\n")
    return root


def test_pages_have_the_licence_of_the_package_they_are_from(tmp_path: Path) -> None:
    licences = PackageLicences("unknown", system(tmp_path))
    assert licences.of_page(Path("/usr/share/man/man1/cat.1.gz")) == "GPL-3+"
    assert licences.of_page(Path("/usr/share/man/zh_CN/man1/dog.1.gz")) == "unknown"  # its notice is for people
    assert licences.of_page(Path("/usr/share/man/man1/own.1")) == "unknown"  # no package's


def test_documentation_has_the_licence_of_its_package(tmp_path: Path) -> None:
    share = system(tmp_path) / "usr/share"
    licences = PackageLicences("unknown", tmp_path)
    assert licences.of_documentation(share / "doc/cat/README") == "GPL-3+"
    assert licences.of_documentation(share / "doc/cat/more/guide.txt") == "GPL-3+"
    assert licences.of_documentation(share / "doc/none/README") == "unknown"


@pytest.mark.parametrize(
    ("notice", "licence"),
    [
        (NOTICE, "GPL-3+"),
        ("Format: 1.0\n\nFiles: a.c\nLicense: MIT\n\nFiles: b.c\nLicense: Zlib\n", "MIT"),
        ("Format: 1.0\n", None),
        ("License: MIT\n", None),
    ],
)
def test_notices(notice: str, licence: str | None) -> None:
    assert licence_in(notice) == licence


def test_what_is_for_reading() -> None:
    found = [name for name in ("README", "guide.md.gz", "copyright", "changelog.gz", "a.c", "examples/README")
             if is_reading(Path("/usr/share/doc/cat") / name)]  # fmt: skip
    assert found == ["README", "guide.md.gz"]
