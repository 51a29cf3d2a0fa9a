"""Work that all processes of a run do together, and fail at together."""

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

from tapwater.errors import CheckpointError

T = TypeVar("T")


class Together:
    """All processes of the run, over a group of their own: its collectives may run in a thread beside training.

    Without torch.distributed it is this process alone. Every process must make it, at the same point; one that reads or
    writes by itself makes it `alone`, and the others do not.
    """

    def __init__(self, alone: bool = False) -> None:
        self.group: dist.ProcessGroup | None = None
        self.rank, self.size = 0, 1
        if not alone and dist.is_available() and dist.is_initialized():
            group = dist.new_group(backend="gloo")
            assert isinstance(group, dist.ProcessGroup)  # of all processes, so of this one
            self.group, self.rank, self.size = group, dist.get_rank(), dist.get_world_size()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def run(self, work: Callable[[], T]) -> list[T]:
        """Do `work` in every process and return what it gave in each, by rank.

        Raises CheckpointError in every process when it failed in one of them.
        """
        try:
            mine: tuple[T | None, str | None] = (work(), None)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others wait to hear of it
            mine = (None, str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}")
        found: list[tuple[T | None, str | None]] = [mine]
        if self.group is not None:
            found = [mine] * self.size
            dist.all_gather_object(found, mine, group=self.group)
        failures = {rank: failure for rank, (_, failure) in enumerate(found) if failure is not None}
        if failures:
            raise CheckpointError(described(failures, self.size))
        return [value for value, _ in found]  # pyrefly: ignore[bad-return]


def described(failures: dict[int, str], size: int) -> str:
    """One line of what failed, by rank where there are several processes; the same failure once."""
    if size == 1 or len(set(failures.values())) == 1:
        return next(iter(failures.values()))
    return "; ".join(f"process {rank}: {failure}" for rank, failure in failures.items())
