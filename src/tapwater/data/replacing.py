"""Text files that are there whole, or as they were."""

from pathlib import Path

from tapwater.errors import DataError


def replace_text(path: Path, text: str) -> None:
    """Write a UTF-8 file beside `path`, then put it in its place; DataError naming it when that cannot be done."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot write: {error.strerror or error}") from None
