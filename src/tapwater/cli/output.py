"""What verbs print and write for other programs: JSON, and files that must not destroy others."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from tapwater.errors import ConfigError

AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print JSON instead of tables.")]


def write_json(facts: Any) -> None:
    """Print plain values to stdout."""
    sys.stdout.write(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def check_new(path: Path, option: str) -> None:
    """ConfigError when a file to be written is there already, or its directory is not; asked before any work."""
    if path.exists():
        raise ConfigError(f"{option}: {path} is there already; choose another name")
    check_place(path, option)


def check_place(path: Path, option: str) -> None:
    """ConfigError when there is no directory to write a file to."""
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: there is no directory {path.parent}")


def check_page(path: Path, option: str) -> None:
    """ConfigError when what is to be replaced by an HTML page does not begin like one."""
    if not path.exists():
        return
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not start.startswith((b"<!doctype html", b"<html")):
        raise ConfigError(f"{option}: {path} is there already and is no HTML page; choose another name")
