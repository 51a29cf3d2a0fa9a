"""What must not happen silently: a mesh that is not there, a schedule that cannot run, a process that is gone."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from dist.processes import run
from dist.training import WIDE, Case, Run
from tapwater.config.pretrain import ParallelSection
from tapwater.errors import ConfigError
from tapwater.parallel import World, join, leave


def test_one_process_needs_no_launcher() -> None:
    world = join(ParallelSection())
    assert (world.size, world.rank, world.is_first, world.meshes) == (1, 0, True, None)
    assert world.broadcast({"a": 1}) == {"a": 1}
    assert float(world.sum_all(torch.tensor(3.0))) == 3.0
    with pytest.raises(ConfigError, match=r"dp 2 \* pp 3 needs 6 processes, there is 1; start them with torchrun"):
        join(ParallelSection(dp=2, pp=3))


def refused(section: ParallelSection) -> str:
    try:
        join(section, timeout_s=60)
    except ConfigError as error:
        return str(error)
    return "joined"


def told(section: ParallelSection) -> tuple[object, float, list[int]]:
    world = join(section, timeout_s=60)
    try:
        heard = world.broadcast({"rank": world.rank, "list": [1, None]})
        total = float(world.sum_dp(torch.tensor(world.rank + 1.0)))
        world.barrier()
        return heard, total, [world.dp_rank, world.ep_rank, world.pp_rank]
    finally:
        leave()


def too_few_micro_batches() -> str:
    world = join(ParallelSection(pp=2), timeout_s=60)
    try:
        pipeline = Run(Case(WIDE), world).pipeline
        pipeline.check([2, 8])
        pipeline.check([2, 1])
    except ConfigError as error:
        return str(error)
    finally:
        leave()
    return "trained"


def abandoned() -> str:
    """The second process dies; the first would wait for its sum."""
    world: World = join(ParallelSection(dp=2), timeout_s=20)
    if not world.is_first:
        os._exit(1)
    start = time.monotonic()
    try:
        world.sum_dp(torch.ones(1))
    except RuntimeError as error:
        assert time.monotonic() - start < 60
        return f"an error: {error}"
    return "a sum"


def test_processes_meet_or_say_why_not(tmp_path: Path) -> None:
    two = ParallelSection(dp=2, ep=2)
    jobs = [(refused, (ParallelSection(dp=4, ep=2),)), (told, (two,)), (too_few_micro_batches, ()), (abandoned, ())]
    first, second = run(2, tmp_path, jobs)
    assert first[0] == second[0]
    assert first[0].startswith("parallel: dp 4 * pp 1 needs 4 processes, there are 2;")
    assert first[1] == ({"rank": 0, "list": [1, None]}, 3.0, [0, 0, 0])
    assert second[1] == ({"rank": 0, "list": [1, None]}, 3.0, [1, 1, 0])
    assert first[2].startswith("parallel: schedule 1f1b cannot run 1 micro-batches of a process over 2 stages")
    assert first[3].startswith("an error: ")
    assert len(second) == 3  # it died


@pytest.mark.slow
def test_torchrun_starts_them(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from tapwater.config.pretrain import ParallelSection\n"
        "from tapwater.parallel import join, leave\n"
        "world = join(ParallelSection(dp=2))\n"
        "print('sum', world.rank, float(world.sum_dp(torch.tensor(world.rank + 1.0))), flush=True)\n"
        "leave()\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    assert sorted(line for line in ended.stdout.splitlines() if line.startswith("sum")) == ["sum 0 3.0", "sum 1 3.0"]
