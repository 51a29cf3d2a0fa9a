"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

from tapwater.checkpoint.pull import pull


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file, in the cache `tapwater pull` uses; fetched once when it is not there."""
    cache = os.environ.get("TAPWATER_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tapwater"
    return pull("smollm2-135m-instruct", Path(cache).expanduser(), progress=lambda done, total: None)
