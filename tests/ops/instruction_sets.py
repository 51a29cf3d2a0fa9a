"""Native kernels forced to one instruction set for the time of a test."""

from collections.abc import Iterator

import pytest

from tapwater.errors import ConfigError
from tapwater.ops import native


def forced(name: str, threads: int) -> Iterator[native.Kernels]:
    """Kernels of the instruction set, the one in use being restored afterwards; skips where it does not run."""
    if not native.is_built():
        pytest.skip("the kernels are not built here: no C++ compiler")
    before = native.instruction_set()
    try:
        native.force_instruction_set(name)
    except ConfigError:
        pytest.skip(f"this processor has no {name}")
    kernels = native.Kernels(threads)
    yield kernels
    kernels.close()
    native.force_instruction_set(before)
