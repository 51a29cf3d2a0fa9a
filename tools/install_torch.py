"""Install torch into this environment, without several gigabytes of CUDA on a machine that has no GPU.

For x86-64 Linux the package index's torch is the CUDA build. TORCH_INDEX names a further index to take torch from, such
as PyTorch's own index of CPU wheels; TORCH_CUDA=1 says that the CUDA build is wanted.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

TORCH = "torch==2.13.0"


def main() -> int:
    index = os.environ.get("TORCH_INDEX")
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    where = ["--no-deps", "--retries", "1", "--extra-index-url", index] if index else []
    wants_gpu = os.environ.get("TORCH_CUDA") == "1" or shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists()
    if not wants_gpu and resolves_to_cuda(pip, where):
        print(
            f"error: on this machine pip would install the CUDA build of {TORCH}, about 2.7 GB, and there is no GPU.\n"
            "Set TORCH_INDEX to PyTorch's index of CPU wheels (the URL its install page at https://pytorch.org shows\n"
            "for pip and CPU), e.g. `make serve TORCH_INDEX=URL`; or set TORCH_CUDA=1 to take the CUDA build.",
            file=sys.stderr,
        )
        return 1
    return subprocess.call([*pip, *where, TORCH])


def resolves_to_cuda(pip: list[str], where: list[str]) -> bool:
    """Whether the wheel pip would take asks for CUDA libraries; nothing is installed."""
    command = [*pip, *where, "--dry-run", "--ignore-installed", "--no-deps", "--report", "-", TORCH]
    report = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if report.returncode:
        sys.exit(report.returncode)
    (wheel,) = json.loads(report.stdout)["install"]
    return any(need.startswith(("nvidia-", "cuda-")) for need in wheel["metadata"].get("requires_dist", []))


if __name__ == "__main__":
    sys.exit(main())
