"""Hugging Face directories, both ways: config.json, sharded safetensors, tokenizer files."""

import json
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tapwater.checkpoint.names import layout, shared_copies
from tapwater.checkpoint.weights import Progress, build
from tapwater.config import ModelConfig, from_hf, read_json, to_hf
from tapwater.errors import CheckpointError, ConfigError
from tapwater.model import Transformer
from tapwater.text import Tokenizer

CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9


class HfDirectory:
    """A directory of safetensors as a TensorSource; files are mapped, not read, until a tensor is asked for.

    Raises CheckpointError for a missing, truncated or damaged file, or an index that contradicts its shards.
    """

    def __init__(self, directory: Path) -> None:
        self.where = str(directory)
        self.directory = directory
        if not directory.is_dir():
            raise CheckpointError(f"{directory}: no such directory")
        try:
            raw = read_json(directory / CONFIG_FILE)
        except ConfigError as error:
            raise CheckpointError(str(error)) from None
        if raw.get("quantization_config"):
            raise CheckpointError(
                f"{directory / CONFIG_FILE}: quantization_config is not supported; dequantise the checkpoint to "
                "bfloat16 first"
            )
        self.config: ModelConfig = from_hf(raw, str(directory / CONFIG_FILE))
        self._file_of = self._files()
        self.files = tuple(directory / name for name in sorted(set(self._file_of.values())))
        self._open = {path.name: _open(path) for path in self.files}
        self._check_index()

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: tuple(self._open[file].get_slice(name).get_shape()) for name, file in self._file_of.items()}

    def read(self, name: str) -> Tensor:
        file = self._file_of[name]
        try:
            return self._open[file].get_tensor(name)
        except (SafetensorError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{self.directory / file}: tensor {name} cannot be read: {error}") from None

    def kinds(self, name: str) -> tuple[str, ...]:
        """The type a tensor is stored in, as safetensors calls it: BF16, F32."""
        return (self._open[self._file_of[name]].get_slice(name).get_dtype(),)

    def steps(self, name: str) -> None:
        """No tensor is stored in integers (`quantization_config` is refused)."""

    def _files(self) -> dict[str, str]:
        """Tensor name to file name, from the index or from the single file."""
        index, single = self.directory / INDEX_FILE, self.directory / SINGLE_FILE
        if not index.exists():
            if not single.exists():
                raise CheckpointError(f"{self.directory}: neither {SINGLE_FILE} nor {INDEX_FILE} is there")
            return dict.fromkeys(_open(single).keys(), SINGLE_FILE)
        try:
            weight_map = read_json(index).get("weight_map")
        except ConfigError as error:
            raise CheckpointError(str(error)) from None
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index}: weight_map is missing or empty")
        for name, file in weight_map.items():
            if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
                raise CheckpointError(
                    f"{index}: weight_map of {name} is {file!r}, not a .safetensors file of this directory"
                )
        return weight_map

    def _check_index(self) -> None:
        held = {name: file for file, handle in self._open.items() for name in handle.keys()}  # noqa: SIM118
        for name, file in self._file_of.items():
            if held.get(name) != file:
                raise CheckpointError(f"{self.directory / INDEX_FILE}: {name} is not in {file}")
        for name, file in held.items():
            if name not in self._file_of:
                raise CheckpointError(f"{self.directory / file}: {name} is not in {INDEX_FILE}")


def load_hf(directory: Path, dtype: torch.dtype | None = None, progress: Progress | None = None) -> Transformer:
    """The model of a Hugging Face directory, cast to `dtype` (None: as stored)."""
    source = HfDirectory(directory)
    return build(source.config, source, dtype, progress)


def save_hf(
    model: Transformer, directory: Path, tokenizer: Tokenizer | None = None, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a directory that transformers and `load_hf` read: all of it or, on any failure, nothing.

    Equal models give equal bytes. Raises CheckpointError when the directory exists already.
    """
    if directory.exists():
        raise CheckpointError(f"{directory}: exists already; choose another directory or remove it first")
    partial = directory.parent / f".{directory.name}.{uuid.uuid4().hex}.partial"
    try:
        partial.mkdir(parents=True)
        _write(model, partial, shard_bytes)
        if tokenizer is not None:
            tokenizer.save(partial)
        partial.rename(directory)
    except (OSError, SafetensorError) as error:  # a full disk is the one or the other, by who finds it
        raise CheckpointError(f"{directory}: cannot be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write(model: Transformer, directory: Path, shard_bytes: int) -> None:
    tensors = model.state_dict()
    dtype = str(model.embed_tokens.weight.dtype).removeprefix("torch.")
    _write_json(directory / CONFIG_FILE, to_hf(model.config, dtype))
    named: dict[str, Tensor] = {}
    for entry in layout(model):
        tensor = tensors[entry.name].float() if entry.always_float32 else tensors[entry.name]
        named |= dict(zip(entry.hf_names, tensor if entry.is_stack else (tensor,), strict=True))
    named |= {copy: named[original] for copy, original in shared_copies(model.config).items()}
    shards = _shards(named, shard_bytes)
    if len(shards) == 1:
        _save(named, directory / SINGLE_FILE)
        return
    files = [f"model-{index:05}-of-{len(shards):05}.safetensors" for index in range(1, len(shards) + 1)]
    for file, names in zip(files, shards, strict=True):
        _save({name: named[name] for name in names}, directory / file)
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    total = sum(tensor.nbytes for tensor in named.values())
    _write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _shards(named: Mapping[str, Tensor], shard_bytes: int) -> list[list[str]]:
    """Consecutive names per file, each file at most `shard_bytes` unless one tensor is larger."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in named.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    return shards


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    # clone: safetensors refuses tensors that share memory, as slices of stacked experts and the head's copies do
    save_file({name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}, path, {"format": "pt"})


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _open(path: Path):
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file (truncated or damaged?): {error}") from None
