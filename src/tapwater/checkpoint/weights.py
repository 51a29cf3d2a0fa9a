"""Fill a model from a source of named tensors, strictly: nothing missing, nothing extra, every shape right."""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from tapwater.checkpoint.names import Entry, layout, meta_model, shared_copies
from tapwater.config import ModelConfig
from tapwater.cost.counts import parameters
from tapwater.errors import CheckpointError
from tapwater.model import Transformer

Progress = Callable[[int, int], None]  # tensors done, tensors in all


class TensorSource(Protocol):
    """Tensors by Hugging Face name, read one at a time; `where` names the file or directory in errors."""

    where: str

    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, name: str) -> Tensor: ...


def build(
    config: ModelConfig, source: TensorSource, dtype: torch.dtype | None, progress: Progress | None = None
) -> Transformer:
    """The model of `config` with the weights of `source`, cast to `dtype` (None: as stored).

    Raises CheckpointError naming the first tensor that is missing, unexpected or of the wrong shape; nothing is read
    before all names and shapes agree.
    """
    model, entries = checked_layout(config, source)
    kept_dtype = dtype
    for done, entry in enumerate(entries):
        parts = [read_float(source, name) for name in entry.hf_names]
        tensor = torch.stack(parts) if entry.is_stack else parts[0]
        if kept_dtype is None:
            kept_dtype = tensor.dtype
        if dtype is None and not entry.always_float32 and tensor.dtype != kept_dtype:
            raise CheckpointError(
                f"{source.where}: tensor {entry.hf_names[0]} is stored as {tensor.dtype}, others as {kept_dtype}; "
                "ask for one dtype"
            )
        assign(model, entry.name, tensor.to(torch.float32 if entry.always_float32 else kept_dtype))
        if progress is not None:
            progress(done + 1, len(entries))
    if config.tie_word_embeddings:
        model.lm_head.weight = model.embed_tokens.weight
    for copy, original in shared_copies(config).items():
        if not torch.equal(source.read(copy), source.read(original)):
            raise CheckpointError(f"{source.where}: {copy} must equal {original}: prediction layers share them")
    return model


def checked_layout(config: ModelConfig, source: TensorSource) -> tuple[Transformer, list[Entry]]:
    """The model without memory and its tensors, once `source` is known to hold exactly these; nothing is read."""
    _check_amount(config, source)
    model = meta_model(config)
    entries = list(layout(model))
    _check_names(config, entries, source)
    return model, entries


def _check_amount(config: ModelConfig, source: TensorSource) -> None:
    """Refuse a configuration far larger than its file before modules are built for it: they would fill the memory."""
    counted = parameters(config)
    stored = sum(math.prod(shape) for shape in source.shapes().values())
    if counted.total > 8 * stored + 2**20:
        raise CheckpointError(
            f"{source.where}: the configuration describes {counted.total:,} parameters, the file holds {stored:,}"
        )


def _check_names(config: ModelConfig, entries: list[Entry], source: TensorSource) -> None:
    found = dict(source.shapes())
    expected = {name: entry.hf_shape for entry in entries for name in entry.hf_names}
    by_name = {name: entry.shape for entry in entries for name in entry.hf_names}
    for copy, original in shared_copies(config).items():
        expected[copy] = by_name[original]
    missing = [name for name in expected if name not in found]
    # Some writers store an empty tensor for "no shared experts": it carries nothing.
    extra = [name for name, shape in found.items() if name not in expected and 0 not in shape]
    if missing:
        raise CheckpointError(f"{source.where}: {_some(missing)} missing; the configuration asks for it")
    if extra:
        raise CheckpointError(f"{source.where}: {_some(extra)} not part of a {config.model_type} of this configuration")
    for name, shape in expected.items():
        if found[name] != shape:
            raise CheckpointError(
                f"{source.where}: tensor {name} has shape {list(found[name])}, the configuration says {list(shape)}"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"tensor {names[0]}{more}"


def read_float(source: TensorSource, name: str) -> Tensor:
    """One tensor of floats as stored; CheckpointError for any other kind of number."""
    tensor = source.read(name)
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise CheckpointError(
            f"{source.where}: tensor {name} is stored as {tensor.dtype}; only float32, float16 and bfloat16 are "
            "supported"
        )
    return tensor


def assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Set one parameter or buffer of a model without memory."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._buffers:
        setattr(module, leaf, nn.Buffer(tensor))
    else:
        setattr(module, leaf, nn.Parameter(tensor))
