"""How the C library gives memory back: for a training step, not at all."""

import ctypes
import sys

# malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Let this process keep what it frees for its next step; False where the C library has no such setting.

    Otherwise a step's activations and logits go back to the system and are fetched again page by page, zeroed: some
    300,000 page faults, a twelfth of the processor time of a step of 135M weights.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, -1))


def give_back_memory() -> None:
    """Give what was freed back now, where the C library can: between runs, and before what is free is asked."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
