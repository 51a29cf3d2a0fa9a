"""Runs functions in several processes that meet as those of torchrun do."""

import os
import socket
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp


class Raised(str):
    """The text of an exception that a job ended with."""


Job = tuple[Callable[..., Any], tuple[Any, ...]]


def run(processes: int, directory: Path, jobs: Sequence[Job]) -> list[list[Any]]:
    """What each process returned for each job, one after another, each job meeting anew: [processes][jobs].

    A job that raised gives a Raised and is the process's last; of a process that died nothing is
    known but what it returned before.
    """
    ports = [_free_port() for _ in jobs]
    context = mp.get_context("forkserver")  # its server imports once, and has no threads that a fork would lose
    context.set_forkserver_preload(["tapwater.parallel", "torch.distributed.checkpoint"])
    started = [
        context.Process(target=_enter, args=(rank, processes, ports, directory, jobs)) for rank in range(processes)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    files = [directory / f"{rank}.pt" for rank in range(processes)]
    return [torch.load(file, weights_only=False) if file.exists() else [] for file in files]


def _enter(rank: int, size: int, ports: list[int], directory: Path, jobs: Sequence[Job]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "TORCHELASTIC_RUN_ID": "test"}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    answers: list[Any] = []
    for port, (function, arguments) in zip(ports, jobs, strict=True):
        os.environ["MASTER_PORT"] = str(port)  # another one each time: a late process must not find the last meeting
        try:
            answers.append(function(*arguments))
        except Exception:
            answers.append(Raised(traceback.format_exc()))
        torch.save(answers, directory / f"{rank}.pt")
        if isinstance(answers[-1], Raised):
            break


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
