"""Muon over stacks of matrices, against torch.optim.Muon on every matrix."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tapwater.train.muon import StackedMuon

LR, DECAY, MOMENTUM = 0.02, 0.1, 0.95


def gradients(shape: tuple[int, int, int], steps: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator) * 10.0 ** -(step % 3) for step in range(steps)]


def stacked(start: Tensor, grads: list[Tensor]) -> tuple[Tensor, Tensor]:
    parameter = nn.Parameter(start.clone())
    optimizer = StackedMuon([parameter], LR, DECAY, MOMENTUM)
    for grad in grads:
        parameter.grad = grad.clone()
        optimizer.step()
    return parameter.data, optimizer.state[parameter]["momentum_buffer"]


@pytest.mark.parametrize("shape", [(3, 32, 48), (4, 48, 32), (1, 24, 24)])
def test_a_stack_moves_as_its_matrices_would(shape: tuple[int, int, int]) -> None:
    """Momentum is the same to the bit; weights to bfloat16's rounding of the products' sums."""
    start, grads = torch.randn(shape), gradients(shape, 4)
    found, buffer = stacked(start, grads)
    for index in range(shape[0]):
        one = nn.Parameter(start[index].clone())
        oracle = torch.optim.Muon([one], LR, DECAY, MOMENTUM)
        for grad in grads:
            one.grad = grad[index].clone()
            oracle.step()
        assert torch.equal(buffer[index], oracle.state[one]["momentum_buffer"])
        moved = (one.data - start[index]).abs().max()
        torch.testing.assert_close(found[index], one.data, rtol=0, atol=0.01 * float(moved))


def test_the_update_is_nearly_orthogonal() -> None:
    """Newton-Schulz brings singular values near 1, whatever they were; those of a plain gradient are far from it."""
    start = torch.zeros(2, 16, 40)
    left, right = torch.linalg.qr(torch.randn(2, 16, 16)).Q, torch.linalg.qr(torch.randn(2, 40, 16)).Q
    spread = torch.logspace(0, -1.5, 16)
    found, _ = stacked(start, [left * spread @ right.mT])
    values = torch.linalg.svdvals(found / LR)
    assert all(0.5 < float(each) < 1.5 for each in values.flatten())


def test_only_stacks_are_taken() -> None:
    with pytest.raises(ValueError, match="stacks of matrices"):
        StackedMuon([nn.Parameter(torch.zeros(2, 2))], LR, DECAY, MOMENTUM)


def sharded_process(rank: int, directory: str) -> None:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard, distribute_tensor
    from torch.distributed.tensor.debug import CommDebugMode

    dist.init_process_group("gloo", init_method=f"file://{directory}/meeting", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    start, grads = torch.randn(5, 24, 16, generator=torch.Generator().manual_seed(1)), gradients((5, 24, 16), 3)
    parameter = nn.Parameter(distribute_tensor(start, mesh, [Shard(0)]))
    optimizer = StackedMuon([parameter], LR, DECAY, MOMENTUM)
    for grad in grads:
        parameter.grad = distribute_tensor(grad, mesh, [Shard(0)])
        with CommDebugMode() as communication:
            optimizer.step()
        assert communication.get_total_counts() == 0
    assert isinstance(parameter.data, DTensor)
    whole = parameter.data.full_tensor()
    if rank == 0:
        torch.save(whole, f"{directory}/whole.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_a_stack_split_over_processes_moves_the_same(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(sharded_process, (str(tmp_path),), nprocs=2)
    start = torch.randn(5, 24, 16, generator=torch.Generator().manual_seed(1))
    expected, _ = stacked(start, gradients((5, 24, 16), 3))
    torch.testing.assert_close(torch.load(tmp_path / "whole.pt"), expected, rtol=0, atol=2e-4)
