"""Open a model from wherever it lies: a GGUF file, a Hugging Face directory, a packed directory."""

from dataclasses import dataclass
from pathlib import Path

import torch

from tapwater.checkpoint.gguf import GgufFile
from tapwater.checkpoint.hf import HfDirectory
from tapwater.checkpoint.packed_store import PackedDirectory, is_packed
from tapwater.checkpoint.packing import pack_weights
from tapwater.checkpoint.unpacked import UnpackedSource
from tapwater.checkpoint.weights import Progress, build
from tapwater.config import ModelConfig, read_config
from tapwater.errors import CheckpointError
from tapwater.model import PackedWeights, Transformer
from tapwater.ops.quant import Format
from tapwater.text import Tokenizer


@dataclass(frozen=True)
class LoadedModel:
    model: Transformer
    tokenizer: Tokenizer


def load_model(path: Path, dtype: torch.dtype | None, progress: Progress | None = None) -> LoadedModel:
    """The model and tokenizer at `path`, weights cast to `dtype` (None: as stored).

    Packed weights are unpacked, to float32 where `dtype` is None; prediction layers are not among them.

    Raises CheckpointError for files that are missing, damaged or contradict each other, ConfigError for an
    architecture outside the family.
    """
    if is_packed(path):
        packed, tokenizer = _open_packed(path)
        source = UnpackedSource(packed.config, packed.weights(), str(path))
    else:
        source, tokenizer = open_source(path)
    return LoadedModel(build(source.config, source, dtype, progress), tokenizer)


@dataclass(frozen=True)
class LoadedPacked:
    """A model for the native kernels; `notes` say what was requantised to get there, at what error."""

    config: ModelConfig
    weights: PackedWeights
    tokenizer: Tokenizer
    notes: tuple[str, ...]


def load_packed(path: Path, format: Format | None, progress: Progress | None = None) -> LoadedPacked:
    """The model at `path` with packed weights; format None: as stored, exactly wherever a format holds it.

    A packed directory is mapped, in the format it was packed in; anything else is packed now, into memory. Raises
    CheckpointError and ConfigError as `load_model` does.
    """
    if is_packed(path):
        packed, tokenizer = _open_packed(path)
        if format not in (None, packed.manifest.requested):
            raise CheckpointError(
                f"{path}: was packed as {packed.manifest.requested} and cannot become {format}; quantize the original"
            )
        return LoadedPacked(packed.config, packed.weights(), tokenizer, packed.manifest.notes())
    source, tokenizer = open_source(path)
    made = pack_weights(source.config, source, format, progress)
    return LoadedPacked(source.config, made.weights, tokenizer, made.notes)


def open_source(path: Path) -> tuple[GgufFile | HfDirectory, Tokenizer]:
    """The tensors and the tokenizer of a checkpoint that is not packed; no tensor is read."""
    if not path.is_dir():
        gguf = _gguf(path)
        tokenizer = gguf.tokenizer()
        _check_vocabulary(tokenizer, gguf.config, path)
        return gguf, tokenizer
    if is_packed(path):
        raise CheckpointError(f"{path}: is packed for the native kernels; its original is needed here")
    directory = HfDirectory(path)
    tokenizer = Tokenizer.from_directory(path)
    _check_vocabulary(tokenizer, directory.config, path)
    return directory, tokenizer


def _open_packed(path: Path) -> tuple[PackedDirectory, Tokenizer]:
    packed = PackedDirectory(path)
    tokenizer = Tokenizer.from_directory(path)
    _check_vocabulary(tokenizer, packed.config, path)
    return packed, tokenizer


def load_config(path: Path) -> ModelConfig:
    """The ModelConfig of a model, without reading its weights."""
    return read_config(path / "config.json") if path.is_dir() else _gguf(path).config


def _gguf(path: Path) -> GgufFile:
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory")
    if path.suffix != ".gguf":
        raise CheckpointError(f"{path}: not a model; expected a .gguf file or a directory with config.json")
    return GgufFile(path)


def _check_vocabulary(tokenizer: Tokenizer, config: ModelConfig, path: Path) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{path}: the tokenizer has {tokenizer.vocab_size} tokens, the model embeds only {config.vocab_size}"
        )
