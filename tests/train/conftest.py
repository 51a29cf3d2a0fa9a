"""What all tests of training share."""

import pytest


@pytest.fixture(autouse=True)
def peak_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peak serves MFU alone and takes a second or two of every run; test_probe.py measures it."""
    monkeypatch.setattr("tapwater.train.loop.matmul_peak", lambda *_: 1e10)
