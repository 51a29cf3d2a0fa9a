"""From a checkpoint's tensors to packed weights: which format each becomes, and how with the least loss."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import Tensor

from tapwater.checkpoint.gguf_blocks import Steps, widened
from tapwater.checkpoint.packed_layout import Array, packed_arrays
from tapwater.checkpoint.weights import Progress, TensorSource, checked_layout, read_float
from tapwater.config import ModelConfig
from tapwater.errors import CheckpointError
from tapwater.model import PackedWeights
from tapwater.ops.quant import Format, PackedWeight, deviation, pack, quantise, stack

# What a tensor becomes that is to stay as it is stored. Types of less than four bits have no format of their own:
# q4_min adds least to their size, and 7% of error to their own of twice that and more. The others that no format holds
# exactly go to q8, at an error below 1%.
AS_STORED = {
    **dict.fromkeys(("F32", "F16", "BF16"), Format.BF16),
    **dict.fromkeys(("Q8_0", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"), Format.Q8),
    **dict.fromkeys(("Q4_1", "Q4_K", "Q2_K", "Q3_K"), Format.Q4_MIN),
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"), Format.Q4_MIN),
    "Q4_0": Format.Q4,
}
FOUR_BITS = {Format.Q4, Format.Q4_MIN}
# Four bits here alone cost 6% of SmolLM2's perplexity; llama.cpp keeps them finer in its 4-bit files too.
VOCABULARY = ("embed_tokens.weight", "lm_head.weight")


class PackingSource(TensorSource, Protocol):
    """A TensorSource that knows in which `files`, as what, and in which integers (if any) tensors are stored."""

    @property
    def files(self) -> tuple[Path, ...]: ...

    def kinds(self, name: str) -> tuple[str, ...]: ...

    def steps(self, name: str) -> Steps | None: ...


@dataclass(frozen=True)
class Made:
    """An array's content, and what packing did to it: squared error, and squared norm of what it was."""

    content: PackedWeight | Tensor
    squared_error: float = 0.0
    squared_norm: float = 0.0


@dataclass(frozen=True)
class Planned:
    """An array to come: `format` of a matrix (None: a float32 tensor), and what it is stored as now."""

    array: Array
    format: Format | None
    stored_as: str
    make: Callable[[], Made]


@dataclass(frozen=True)
class Packed:
    """Weights ready for kernels; `notes` say what was requantised, and at what error."""

    weights: PackedWeights
    notes: tuple[str, ...]


def pack_weights(
    config: ModelConfig, source: PackingSource, format: Format | None, progress: Progress | None = None
) -> Packed:
    """All weights of `source` in `format`; None: each as stored, exactly wherever a format holds it.

    Asked for q4_min, a tensor stored as Q4_0 stays q4, and embedding and head become q8 unless they are stored in four
    bits already. Array by array, so that memory stays near the packed size.

    Raises CheckpointError for tensors that are missing, unexpected, misshapen, not finite, or too large for a format.
    """
    plans = plan(config, source, format)
    matrices: dict[str, PackedWeight] = {}
    tensors: dict[str, Tensor] = {}
    changes = Changes()
    for done, planned in enumerate(plans, start=1):
        made = planned.make()
        if isinstance(made.content, PackedWeight):
            matrices[planned.array.name] = made.content
        else:
            tensors[planned.array.name] = made.content
        changes.add(planned.stored_as, planned.format, made.squared_error, made.squared_norm)
        if progress is not None:
            progress(done, len(plans))
    return Packed(PackedWeights(matrices, tensors), changes.notes())


def plan(config: ModelConfig, source: PackingSource, format: Format | None) -> list[Planned]:
    """Every array of the packed model, in order. All names and shapes agree then, but no tensor is read yet."""
    _, entries = checked_layout(config, source)
    arrays = packed_arrays(config, entries)
    formats = {array.name: _target(array, source, format) for array in arrays if array.is_matrix}
    for name in [name for name in formats if "up_proj" in name]:  # kernels compute gate and up together
        pair = (name, name.replace("up_proj", "gate_proj"))
        found = {formats[each] for each in pair}
        if len(found) > 1:
            formats |= dict.fromkeys(pair, Format.Q4_MIN if found == FOUR_BITS else Format.Q8)
    return [_planned(array, formats.get(array.name), source) for array in arrays]


def _target(array: Array, source: PackingSource, wanted: Format | None) -> Format:
    targets = set()
    for kind in _kinds(array, source):
        if kind not in AS_STORED:
            raise CheckpointError(f"{source.where}: {array.name} is stored as {kind}, which cannot be packed")
        stored = AS_STORED[kind]
        if wanted is None or {stored, wanted} == FOUR_BITS:
            targets.add(stored)
        else:
            spared = wanted in FOUR_BITS and stored not in FOUR_BITS and array.name in VOCABULARY
            targets.add(Format.Q8 if spared else wanted)
    found = targets.pop() if len(targets) == 1 else Format.Q8
    # The two orientations of W_UK must stay one matrix: in eight bits they are within 0.5% of it, in four they are not.
    return Format.Q8 if array.cut and found is not Format.BF16 else found


def _planned(array: Array, format: Format | None, source: PackingSource) -> Planned:
    make = partial(_float32, array, source) if format is None else partial(_matrices, array, format, source)
    return Planned(array, format, " and ".join(_kinds(array, source)), make)


def _kinds(array: Array, source: PackingSource) -> tuple[str, ...]:
    return tuple(dict.fromkeys(kind for name in array.hf_names for kind in source.kinds(name)))


def _float32(array: Array, source: PackingSource) -> Made:
    (name,) = array.hf_names
    tensor = read_float(source, name).float()
    if not tensor.isfinite().all():
        raise CheckpointError(f"{source.where}: tensor {name} holds values that are not finite")
    return Made(tensor)


def _matrices(array: Array, format: Format, source: PackingSource) -> Made:
    try:
        if array.cut is None:
            made = [_matrix(name, format, source) for name in array.hf_names]
        else:
            whole = read_float(source, array.hf_names[0])
            made = [_quantised(matrix.contiguous(), format) for matrix in array.cut(whole)]
    except ValueError as error:
        raise CheckpointError(f"{source.where}: {array.name} cannot become {format}: {error}") from None
    packed = [weight for weight, _, _ in made]
    content = packed[0] if len(packed) == 1 else stack(packed)
    return Made(content, sum(error for _, error, _ in made), sum(norm for _, _, norm in made))


def _matrix(name: str, format: Format, source: PackingSource) -> tuple[PackedWeight, float, float]:
    if format is Format.BF16 and source.kinds(name) == ("BF16",):
        return quantise(read_float(source, name), format), 0.0, 0.0
    steps = source.steps(name)
    steps = None if steps is None else widened(steps, format)
    if steps is None:
        return _quantised(read_float(source, name), format)
    weight = pack(*steps)
    if source.kinds(name) == ("Q4_K",):  # whose integers are exact, but not their scales
        return weight, *deviation(weight, read_float(source, name))
    return weight, 0.0, 0.0


def _quantised(matrix_OI: Tensor, format: Format) -> tuple[PackedWeight, float, float]:
    weight = quantise(matrix_OI, format)
    return weight, *deviation(weight, matrix_OI)


class Changes:
    """Adds up what requantising did, by what became what."""

    def __init__(self) -> None:
        self._sums: dict[tuple[str, Format], tuple[int, float, float]] = {}

    def add(self, stored_as: str, format: Format | None, squared_error: float, squared_norm: float) -> None:
        if format is not None and squared_error > 0:
            count, error, norm = self._sums.get((stored_as, format), (0, 0.0, 0.0))
            self._sums[stored_as, format] = (count + 1, error + squared_error, norm + squared_norm)

    def notes(self) -> tuple[str, ...]:
        """A line for each; the error is the root of the summed squares over that of the weights as they were."""
        lines = []
        for (stored_as, format), (count, error, norm) in self._sums.items():
            tensors = "1 tensor" if count == 1 else f"{count} tensors"
            lines.append(
                f"{tensors} requantised from {stored_as} to {format}, relative error {math.sqrt(error / norm):.2%}"
            )
        return tuple(lines)
