"""The processes of a run: how many there are, which one this is, and what they tell each other."""

import platform
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from tapwater.config.pretrain import ParallelSection
from tapwater.errors import ConfigError


@dataclass(frozen=True)
class Meshes:
    """The same processes twice: `dense` is [pp, dp]; `experts` is [pp, ep, edp], for what ep divides.

    Rank = (pp_rank * edp + edp_rank) * ep + ep_rank: the processes of an ep group are neighbours, on one machine where
    it has that many devices, and those of a pipeline are farthest apart. ep stands before edp in the mesh since an
    expert's place is its ep group member first.
    """

    dense: DeviceMesh
    experts: DeviceMesh


@dataclass(frozen=True)
class World:
    """All processes of a run as one of them sees them; a single process needs no process group (`meshes` None)."""

    section: ParallelSection
    rank: int
    device: torch.device
    meshes: Meshes | None
    local_processes: int = 1  # of the run on this machine: they share its memory and its cores
    machines: int = 1

    @property
    def size(self) -> int:
        return self.section.processes

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once: logs, files, the export."""
        return self.rank == 0

    @property
    def dp_rank(self) -> int:
        """Which share of the global batch's rows is this process's; those of one pipeline have the same."""
        return self.rank % self.section.dp

    @property
    def pp_rank(self) -> int:
        return self.rank // self.section.dp

    @property
    def ep_rank(self) -> int:
        """Which share of every layer's experts this process holds."""
        return self.rank % self.section.ep

    def sum_dp(self, tensor: Tensor) -> Tensor:
        """The sum over dp of a tensor of any device, the same on all of its processes; the argument is not changed."""
        return tensor if self.meshes is None else _sum(tensor, self.meshes.dense.get_group("dp"), self.device)

    def sum_pp(self, tensor: Tensor) -> Tensor:
        """The sum over the processes of a pipeline."""
        return tensor if self.meshes is None else _sum(tensor, self.meshes.dense.get_group("pp"), self.device)

    def sum_all(self, tensor: Tensor) -> Tensor:
        return tensor if self.meshes is None else _sum(tensor, dist.group.WORLD, self.device)

    def broadcast(self, value: Any) -> Any:
        """The first process's `value` (plain JSON) on every process."""
        if self.meshes is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def barrier(self) -> None:
        """Wait until all processes are here."""
        if self.meshes is not None:
            dist.barrier()


def join(section: ParallelSection, timeout_s: float = 600.0) -> World:
    """This process's World; under torchrun all processes meet here, on GPUs where there are some.

    A process that waits for another longer than `timeout_s` fails with an error instead of waiting for ever. Raises
    ConfigError when there are not dp * pp processes.
    """
    device = torch.device("cuda", dist.get_node_local_rank(0)) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_torchelastic_launched():
        _check_size(section, 1)
        return World(section, 0, device, None)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
    try:
        _check_size(section, dist.get_world_size())
    except ConfigError:
        dist.destroy_process_group()
        raise
    if section.processes == 1:
        return World(section, 0, device, None)
    ranks = torch.arange(section.processes).view(section.pp, section.dp)
    by_expert = ranks.view(section.pp, -1, section.ep).transpose(1, 2)
    dense = DeviceMesh(device.type, ranks, mesh_dim_names=("pp", "dp"))
    experts = DeviceMesh(device.type, by_expert, mesh_dim_names=("pp", "ep", "edp"))
    machines: list[str] = [""] * section.processes
    dist.all_gather_object(machines, platform.node())
    return World(
        section, dist.get_rank(), device, Meshes(dense, experts), machines.count(platform.node()), len({*machines})
    )


def leave() -> None:
    """End what `join` began; without a process group there is nothing to end."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _check_size(section: ParallelSection, processes: int) -> None:
    if processes != section.processes:
        raise ConfigError(
            f"parallel: dp {section.dp} * pp {section.pp} needs {section.processes} processes, there "
            f"{'is' if processes == 1 else 'are'} {processes}; start them with torchrun --nproc-per-node"
        )


def _sum(tensor: Tensor, group: dist.ProcessGroup | None, device: torch.device) -> Tensor:
    summed = tensor.detach().to(device, copy=True).contiguous()
    dist.all_reduce(summed, group=group)
    return summed.to(tensor.device)
