"""Tensors to files and back through torch.distributed.checkpoint: each process its shards, onto any other mesh."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from tapwater.errors import CheckpointError
from tapwater.parallel.together import Together, described

METADATA_FILE = ".metadata"
# One process is what we mean. Set here once: catch_warnings around a call is not safe beside other threads.
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)


class _Writer(dcp.FileSystemWriter):
    def storage_meta(self) -> StorageMeta:
        """Nothing: the path and the random number kept here otherwise would make equal states differ."""
        return StorageMeta()


def stage(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in this machine's memory, which training can no longer change; shards stay shards."""
    options = StagingOptions(
        use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
    )
    staged = DefaultStager(options).stage({name: tensor.detach() for name, tensor in tensors.items()})
    assert isinstance(staged, dict)
    return staged


def write_shards(directory: Path, tensors: Mapping[str, Tensor], together: Together) -> None:
    """Write this process's part into `directory`; CheckpointError in all processes when it fails in one."""
    try:
        dcp.save(
            dict(tensors),
            storage_writer=_Writer(directory, sync_files=True),
            process_group=together.group,
            no_dist=together.group is None,
        )
    except CheckpointException as error:
        raise CheckpointError(f"{directory}: cannot be written: {_failures(error, together)}") from error


def shard_files(directory: Path, rank: int) -> list[Path]:
    """What a process wrote."""
    return sorted(directory.glob(f"__{rank}_*.distcp"))


def read_shards(directory: Path, into: Mapping[str, Tensor], together: Together) -> None:
    """Fill the tensors of `into`, sharded as they are now.

    Raises CheckpointError unless names, shapes and dtypes agree. A section (`model`, `optimizer`: what a name begins
    with) is asked for whole, by all processes together, or not at all.
    """
    metadata = dcp.FileSystemReader(directory).read_metadata()
    asked = together.run(lambda: _checked(directory, into, metadata))
    _check_whole(directory, set().union(*asked), metadata)
    try:
        dcp.load(
            dict(into),
            storage_reader=dcp.FileSystemReader(directory),
            process_group=together.group,
            no_dist=together.group is None,
        )
    except CheckpointException as error:
        raise CheckpointError(f"{directory}: cannot be read: {_failures(error, together)}") from error


def _checked(directory: Path, into: Mapping[str, Tensor], metadata: Metadata) -> set[str]:
    for name, tensor in into.items():
        stored = metadata.state_dict_metadata.get(name)
        if not isinstance(stored, TensorStorageMetadata):
            raise CheckpointError(f"{directory}: holds no tensor {name}; is it of another model or optimizer?")
        found, wanted = (stored.size, stored.properties.dtype), (tensor.shape, tensor.dtype)
        if found != wanted:
            raise CheckpointError(f"{directory}: tensor {name} is {_shown(*found)}, {_shown(*wanted)} is wanted")
    return set(into)


def _check_whole(directory: Path, asked: set[str], metadata: Metadata) -> None:
    sections = {name.partition(".")[0] for name in asked}
    held = {name for name in metadata.state_dict_metadata if name.partition(".")[0] in sections}
    left = sorted(held - asked)
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise CheckpointError(f"{directory}: nobody asked for tensor {left[0]}{more}; another model or optimizer?")


def _shown(size: torch.Size, dtype: torch.dtype) -> str:
    return f"{list(size)} {str(dtype).removeprefix('torch.')}"


def _failures(error: CheckpointException, together: Together) -> str:
    return described({rank: str(failure) for rank, (failure, _) in error.failures.items()}, together.size)
