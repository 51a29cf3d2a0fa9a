"""Freed memory that stays with the process."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
from tapwater.ops.memory import keep_freed_memory
import torch

torch.set_num_threads(1)
if sys.argv[1] == "keep":
    keep_freed_memory()
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
def test_memory_used_before_is_used_again_without_faults():
    faults = {
        choice: int(subprocess.run([sys.executable, "-c", PROGRAM, choice], capture_output=True, check=True).stdout)
        for choice in ("keep", "return")
    }
    assert faults["keep"] < 100 < faults["return"]
