"""Open a model from wherever it lies: a GGUF file or a Hugging Face directory."""

from dataclasses import dataclass
from pathlib import Path

import torch

from tapwater.checkpoint.gguf import GgufFile
from tapwater.checkpoint.hf import HfDirectory
from tapwater.checkpoint.weights import Progress, build
from tapwater.config import ModelConfig, read_config
from tapwater.errors import CheckpointError
from tapwater.model import Transformer
from tapwater.text import Tokenizer


@dataclass(frozen=True)
class LoadedModel:
    model: Transformer
    tokenizer: Tokenizer


def load_model(path: Path, dtype: torch.dtype | None, progress: Progress | None = None) -> LoadedModel:
    """The model and tokenizer at `path`, weights cast to `dtype` (None: as stored).

    Raises CheckpointError for files that are missing, damaged or contradict each other, ConfigError for an
    architecture outside the family.
    """
    if path.is_dir():
        directory = HfDirectory(path)
        tokenizer = Tokenizer.from_directory(path)
        _check_vocabulary(tokenizer, directory.config, path)
        return LoadedModel(build(directory.config, directory, dtype, progress), tokenizer)
    gguf = _gguf(path)
    tokenizer = gguf.tokenizer()
    _check_vocabulary(tokenizer, gguf.config, path)
    return LoadedModel(build(gguf.config, gguf, dtype, progress), tokenizer)


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
