"""Freed memory stays with the process: asked of a process of its own, which the setting is for good."""

import subprocess
import sys

import pytest

PROGRAM = """
import resource
from tapwater.train.allocator import keep_freed_memory
import torch

def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(20_000_000) for _ in range(2)]  # 160 MB, 40,000 pages
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = [faults_of_a_step() for _ in range(3)]
kept = keep_freed_memory()
print(min(before), kept, min(faults_of_a_step() for _ in range(20)))  # what is freed fits only after a few
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc")
def test_memory_that_was_freed_is_not_fetched_again() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, kept, after = done.stdout.split()
    if kept == "False":
        pytest.skip("another C library")
    assert int(before) > 10_000
    assert int(after) < 1000
