"""One process at a time in a directory."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tapwater.errors import DataError

NAME = "lock"


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold `directory`, which is there, for this process: the system lets it go when the process ends, however it does.

    Its file stays, for the caller to remove or not. DataError when another process holds it.
    """
    path = directory / NAME
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"{directory}: another process is at work there; wait for it or choose another directory"
            ) from None
        yield
