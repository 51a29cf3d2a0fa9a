"""What the processes of a run do in tests of the store; each is forked from a server that has imported torch once."""

import multiprocessing
import os
import resource
import signal
import time
import uuid
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from tapwater.checkpoint import store as store_module
from tapwater.checkpoint.store import Store
from tapwater.checkpoint.train_state import model_tensors, optimizer_tensors
from tapwater.errors import CheckpointError
from tapwater.parallel.together import Together

TIMEOUT_S = 60
IMPORTED_ONCE = (
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "tapwater.checkpoint.store",
)


def start(work: Callable[..., None], *arguments: object) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED_ONCE))
    process = context.Process(target=work, args=arguments)
    process.start()
    return process


def run_processes(count: int, work: Callable[..., None], directory: Path, *arguments: object) -> list[int | None]:
    """Exit codes of `count` processes that did work(rank, directory, *arguments) in one group."""
    meeting = directory.parent / f"meeting-{uuid.uuid4().hex}"
    processes = [start(_process, work, rank, count, meeting, directory, *arguments) for rank in range(count)]
    for process in processes:
        process.join(TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def _process(
    work: Callable[..., None], rank: int, count: int, meeting: Path, directory: Path, *arguments: object
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    work(rank, directory, *arguments)
    dist.destroy_process_group()


class Small(nn.Module):
    """A table and a stack of matrices that no number of processes divides, a bias that gradients do not move."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(13, 6, generator=generator))
        self.experts = nn.Parameter(torch.randn(5, 4, 6, generator=generator))
        self.bias = nn.Buffer(torch.randn(5, generator=generator))


def trained(seed: int, is_sharded: bool) -> tuple[nn.Module, list[torch.optim.Optimizer]]:
    """A model after a step on gradients that are the same on any mesh, and its two optimizers."""
    model: nn.Module = fully_shard(Small(seed)) if is_sharded else Small(seed)
    optimizers = [torch.optim.AdamW([model.table]), torch.optim.SGD([model.experts], lr=0.1, momentum=0.9)]
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = _like(torch.randn(parameter.shape, generator=generator), parameter)
    for optimizer in optimizers:
        optimizer.step()
    return model, optimizers


def state(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    return model_tensors(model) | optimizer_tensors(model, optimizers)


def full(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(value: Tensor, pattern: Tensor) -> Tensor:
    if isinstance(pattern, DTensor):
        return distribute_tensor(value, pattern.device_mesh, pattern.placements)
    return value


def save_and_train_on(rank: int, directory: Path, is_sharded: bool) -> None:
    """What is saved is the state when it is saved: training goes on at once."""
    model, optimizers = trained(1, is_sharded)
    store = Store(directory, keep_last=2, keep_best=True)
    tensors = state(model, optimizers)
    store.save(7, tensors, {"cursor": [1, 2]}, 0.5)
    for tensor in tensors.values():
        tensor.add_(1)
    store.close()


def load_and_compare(rank: int, directory: Path, is_sharded: bool) -> None:
    model, optimizers = trained(2, is_sharded)
    tensors = state(model, optimizers)
    assert Store(directory, 2, True).load(7, tensors) == {"cursor": [1, 2]}
    expected = state(*trained(1, is_sharded=False))
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.equal(full(tensor), expected[name]), name


def fail_in_one(rank: int, directory: Path) -> None:
    """A full disk of one process is an error in each, and nothing of it is left; nor may one ask for less."""
    tensors = {"model.a": torch.arange(4.0)}
    store = Store(directory, 2, True)
    store.save(1, tensors, {}, None)
    store.wait()
    if rank == 1:
        store_module.shard_files = _full_disk
    store.save(2, tensors, {}, None)
    _expect(store.wait, "No space left on device")
    latest = store.latest()
    assert latest is not None and latest.step == 1
    _expect(lambda: store.load(1, {"model.a": torch.zeros(4 + rank)}), r"\[5\] float32 is wanted")
    store.close()


def _full_disk(directory: Path, rank: int) -> list[Path]:
    raise OSError(28, "No space left on device")


def _expect(call: Callable[[], object], words: str) -> None:
    try:
        call()
    except CheckpointError as error:
        assert words.replace("\\", "") in str(error), error
    else:
        raise AssertionError(f"no error with {words}")


def die_in_one(rank: int, directory: Path) -> None:
    """Process 1 is killed when its tensors are written, before the checkpoint is complete."""
    tensors = {"model.a": torch.arange(4.0)}
    store = Store(directory, 2, True)
    store.save(1, tensors, {}, None)
    store.wait()
    if rank == 1:
        store_module.shard_files = _die
    store.save(2, tensors, {}, None)
    _expect(store.wait, "was not saved")
    os._exit(0)  # the group has lost a member: nothing can be ended in order


def _die(directory: Path, rank: int) -> list[Path]:
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def fill_the_disk(directory: Path) -> None:
    """Write no file over 50 kB: a full disk, as the libraries meet it."""
    store, tensors = _first(directory)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
    store.save(2, tensors, {}, None)
    _expect(store.wait, "cannot be written")
    store.load(1, {"model.a": torch.zeros(100_000)})


def save_slowly(directory: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs are begun with it ignored
    store, tensors = _first(directory)
    write = store_module.write_shards

    def slowly(directory: Path, tensors: dict[str, Tensor], together: Together) -> None:
        write(directory, tensors, together)
        until = time.monotonic() + TIMEOUT_S
        while not go_on(directory.parent).exists() and time.monotonic() < until:
            time.sleep(0.01)

    store_module.write_shards = slowly
    store.save(2, tensors, {}, None)
    store.wait()


def go_on(directory: Path) -> Path:
    """A file that lets `save_slowly` end, once it is there; beside the store, whose own files it is not."""
    return directory.with_name(f"{directory.name}.go-on")


def _first(directory: Path) -> tuple[Store, dict[str, Tensor]]:
    store, tensors = Store(directory, 2, True), {"model.a": torch.arange(100_000.0)}
    store.save(1, tensors, {}, None)
    store.wait()
    return store, tensors
