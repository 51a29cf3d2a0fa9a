"""Writes a model of a published shape with random weights, for measuring speed without the checkpoint.

    python bench/make_random.py DST.gguf [--packed DIR] [--layers N] [--type q4_0|q8_0] [--shape NAME] [--seed N]

Every matrix is quantised blocks drawn at random, of the magnitude trained weights have, so that activations stay finite
and tokens choose different experts. Names, metadata and the two halves of kv_b_proj are those llama.cpp's converter
writes today. Memory stays at one tensor, and an interrupted run leaves nothing behind.
"""

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import cyclopts
import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType, GGUFWriter, LlamaFileType
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from metadata import metadata, tokenizer_metadata
from tapwater.checkpoint import open_source, write_packed
from tapwater.config import ModelConfig, preset, replace_fields
from tapwater.errors import ConfigError, TapwaterError
from tapwater.ops.quant import Format

F32, Q4_0, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.Q4_0, GGMLQuantizationType.Q8_0
TYPES = {"q4_0": Q4_0, "q8_0": Q8_0}
FILE_TYPES = {"q4_0": LlamaFileType.MOSTLY_Q4_0, "q8_0": LlamaFileType.MOSTLY_Q8_0}
PACKED_FORMATS = {"q4_0": Format.Q4_MIN, "q8_0": Format.Q8}  # Q4_0 stays what it is in the first
DEVIATION = 0.02  # of the weights
# Root mean square of the whole numbers in a block, drawn evenly: -8..7 and -127..127 (of which -127 twice).
STEPS = {Q4_0: math.sqrt(255 / 12 + 1 / 4), Q8_0: math.sqrt((256**2 - 1) / 12)}
SCALES = (0.5, 1.5)  # times the scale that gives DEVIATION: even, so their root mean square is that of 13/12

app = cyclopts.App(help=__doc__)


@dataclass(frozen=True)
class Planned:
    """A tensor to come: `shape` rows last but one, as numpy has it."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType

    @property
    def nbytes(self) -> int:
        block, block_bytes = GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // block * block_bytes


@app.default
def main(
    target: Path,
    *,
    layers: int = 8,
    type: Literal["q4_0", "q8_0"] = "q4_0",
    shape: str = "deepseek-v2-lite",
    seed: int = 0,
    packed: Path | None = None,
) -> None:
    """Write a random model.

    Parameters
    ----------
    target
        The .gguf file to write.
    layers
        Layers of the shape to write.
    type
        How matrices are stored: all of them, the head too.
    shape
        A preset: a deepseek_v2 with experts and without q_lora_rank.
    seed
        Of the weights.
    packed
        A directory to make besides: the same model packed for tapwater's kernels.
    """
    config = replace_fields(preset(shape), {"num_hidden_layers": layers}, f"preset {shape} with {layers} layers")
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(f"Writing {target.name}")
        for done, total in write(target, config, type, seed):
            progress.update(task, completed=done, total=total)
        if packed is not None:
            task = progress.add_task(f"Packing {packed.name}")
            source, tokenizer = open_source(target)
            show = partial(_show, progress, task)
            write_packed(source.config, source, tokenizer, PACKED_FORMATS[type], packed, show)


def _show(progress: Progress, task: TaskID, done: int, total: int) -> None:
    progress.update(task, completed=done, total=total)


def write(target: Path, config: ModelConfig, type: str, seed: int) -> Iterator[tuple[int, int]]:
    """Write the file, yielding (bytes written, bytes in all) after each tensor; `target` appears when it is whole.

    Raises ConfigError for a shape that cannot be written: not a `deepseek_v2` with experts and plain queries, or with
    rows that are no whole number of blocks.
    """
    planned = plan(config, TYPES[type])
    unfinished = target.with_name(target.name + ".partial")
    writer = GGUFWriter(unfinished, "deepseek2")
    writer.add_quantization_version(2)
    writer.add_file_type(FILE_TYPES[type])
    for key, value in (metadata(config) | tokenizer_metadata(config)).items():
        _add(writer, key, value)
    for tensor in planned:
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=tensor.kind)
    chance = np.random.Generator(np.random.SFC64(seed))
    done, total = 0, sum(tensor.nbytes for tensor in planned)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in planned:
            writer.write_tensor_data(draw(tensor, chance))
            done += tensor.nbytes
            yield done, total
        writer.close()
        unfinished.replace(target)
    finally:
        writer.close()
        unfinished.unlink(missing_ok=True)


def plan(config: ModelConfig, kind: GGMLQuantizationType) -> list[Planned]:
    """The tensors of the file in their order."""
    if config.model_type != "deepseek_v2" or config.q_lora_rank is not None or not config.is_moe:
        raise ConfigError("only deepseek_v2 shapes with experts and without q_lora_rank are written, e.g. V2-Lite")
    if config.num_nextn_predict_layers or config.moe_layer_freq != 1:
        raise ConfigError("num_nextn_predict_layers and moe_layer_freq other than 1 are not written")
    D, W, H, mla, moe = config.hidden_size, config.vocab_size, config.num_attention_heads, config.mla, config.moe
    C, N, R, V = mla.kv_lora_rank, mla.qk_nope_head_dim, mla.qk_rope_head_dim, mla.v_head_dim
    tensors = [Planned("token_embd.weight", (W, D), kind)]
    for layer in range(config.num_hidden_layers):
        shapes: dict[str, tuple[int, ...]] = {
            "attn_norm": (D,),
            "attn_q": (H * (N + R), D),
            "attn_kv_a_mqa": (C + R, D),
            "attn_kv_a_norm": (C,),
            "attn_k_b": (H, C, N),
            "attn_v_b": (H, V, C),
            "attn_output": (D, H * V),
            "ffn_norm": (D,),
        }
        if config.is_moe_layer(layer):
            F = moe.moe_intermediate_size
            shapes |= {"ffn_gate_inp": (moe.n_routed_experts, D)}
            shapes |= _swiglu("_exps", (moe.n_routed_experts,), D, F)
            if moe.n_shared_experts:
                shapes |= _swiglu("_shexp", (), D, F * moe.n_shared_experts)
        else:
            shapes |= _swiglu("", (), D, config.intermediate_size)
        for name, shape in shapes.items():
            stored = F32 if len(shape) == 1 or name == "ffn_gate_inp" else kind
            tensors.append(Planned(f"blk.{layer}.{name}.weight", shape, stored))
    tensors.append(Planned("output_norm.weight", (D,), F32))
    if not config.tie_word_embeddings:
        tensors.append(Planned("output.weight", (W, D), kind))
    block = GGML_QUANT_SIZES[kind][0]
    for tensor in tensors:
        if tensor.kind is kind and tensor.shape[-1] % block:
            raise ConfigError(
                f"{tensor.name}: rows of {tensor.shape[-1]} are not whole blocks of {block} in {kind.name}"
            )
    return tensors


def _swiglu(suffix: str, experts: tuple[int, ...], D: int, width: int) -> dict[str, tuple[int, ...]]:
    up, down = (*experts, width, D), (*experts, D, width)
    return {f"ffn_gate{suffix}": up, f"ffn_up{suffix}": up, f"ffn_down{suffix}": down}


def draw(tensor: Planned, chance: np.random.Generator) -> np.ndarray:
    """The bytes of a tensor, as an array of uint8 or float32: norms are one, routers are normal, the rest blocks."""
    if tensor.kind is F32:
        if len(tensor.shape) == 1:
            return np.ones(tensor.shape, np.float32)
        return chance.standard_normal(tensor.shape, np.float32) * np.float32(DEVIATION)
    _, block_bytes = GGML_QUANT_SIZES[tensor.kind]
    count = tensor.nbytes // block_bytes
    words = chance.integers(0, 2**64, -(-tensor.nbytes // 8), np.uint64)
    blocks = words.view(np.uint8)[: tensor.nbytes].reshape(count, block_bytes)
    # Scales differ by half and have either sign, as in real files; even steps of one sign would not average to zero.
    typical = DEVIATION / STEPS[tensor.kind] / math.sqrt(13 / 12)
    scales = (chance.uniform(*SCALES, count) * typical).astype(np.float32)
    scales *= 1 - 2 * (blocks[:, 0] & 1).astype(np.float32)
    blocks[:, :2] = scales.astype("<f2").view(np.uint8).reshape(count, 2)
    if tensor.kind is Q8_0:
        values = blocks[:, 2:].view(np.int8)
        np.maximum(values, -127, out=values)  # no quantiser writes -128
    return blocks.reshape(-1)


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, int) and not isinstance(value, bool):
        writer.add_uint32(key, value)
    else:
        writer.add_key_value(key, value, GGUFValueType.get_type(value))


if __name__ == "__main__":
    try:
        app()
    except TapwaterError as error:
        sys.exit(f"error: {error}")
