"""The door to the C++ row loops of training in `_training`, named as in row_loops.py, which runs where it is missing.

The library needs OpenMP and shares torch's threads; results are the same bits for the same number of threads.
"""

import ctypes
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import tapwater.ops
from tapwater.errors import ConfigError
from tapwater.ops import row_loops

INSTRUCTION_SETS = ("amx", "avx512_bf16", "avx512", "avx2", "portable")  # best first
_STORAGE = {torch.float32: 0, torch.bfloat16: 1}


class Heads(ctypes.Structure):
    """tw::Heads of csrc/training.h."""

    _fields_ = [("data", ctypes.c_void_p), ("row", ctypes.c_int64), ("head", ctypes.c_int64)]


class LatentShape(ctypes.Structure):
    """tw::LatentShape of csrc/training.h."""

    _fields_ = [(name, ctypes.c_int64) for name in ("heads", "nope", "rope", "value")]


class Attention(ctypes.Structure):
    """tw::Attention of csrc/training.h."""

    _fields_ = [
        *((name, Heads) for name in ("q", "k", "v", "y")),
        *((name, ctypes.c_int64) for name in ("heads", "groups", "key_width", "value_width")),
        ("scale", ctypes.c_float),
    ]


class AttentionGradient(ctypes.Structure):
    """tw::AttentionGradient of csrc/training.h."""

    _fields_ = [
        *((name, Heads) for name in ("q", "k", "v", "dy", "dq", "dk", "dv")),
        *((name, ctypes.c_int64) for name in ("heads", "groups", "key_width", "value_width")),
        ("scale", ctypes.c_float),
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The loaded library with its signatures; None where it was not built."""
    candidates = (Path(place) / "_training.so" for place in tapwater.ops.__path__)
    path = next((path for path in candidates if path.exists()), None)
    if path is None:
        return None
    loaded = ctypes.CDLL(str(path))
    loaded.tw_training_set.restype = ctypes.c_char_p
    loaded.tw_training_force.argtypes = [ctypes.c_char_p]
    number, real, pointer = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
    sizes = [number] * 4  # threads, storage, rows, width
    signatures = {
        "tw_rms_norm": [*sizes, pointer, number, pointer, real, pointer, pointer],
        "tw_rms_norm_backward": [*sizes, pointer, number, pointer, number, *[pointer] * 4],
        "tw_silu_product": [*sizes, *[pointer] * 3],
        "tw_silu_product_backward": [*sizes, *[pointer] * 8],
        "tw_transpose": [number, number, number, pointer, number, pointer],
        "tw_gather": [number, number, number, pointer, number, pointer, pointer],
        "tw_combine": [*sizes, pointer, pointer, number, pointer, pointer],
        "tw_rotate": [*sizes[:3], number, number, pointer, pointer, pointer, real, number, pointer],
        "tw_cross_entropy": [*sizes, *[pointer] * 3],
        "tw_add_gradient": [number, number, number, pointer, number, pointer, pointer],
        "tw_round": [number, number, number, pointer, pointer],
        "tw_attention": [number, number, pointer, number, pointer, pointer, number],
        "tw_attention_backward": [number, number, pointer, number, pointer, pointer, number],
        "tw_latent_heads": [*sizes[:3], *[pointer] * 9],
        "tw_latent_heads_backward": [*sizes[:3], *[pointer] * 9],
    }
    for name, arguments in signatures.items():
        function = getattr(loaded, name)
        function.argtypes, function.restype = arguments, None
    for scratch in (loaded.tw_attention_scratch, loaded.tw_attention_backward_scratch):
        scratch.argtypes, scratch.restype = [number, pointer, number], number
    loaded.tw_has_attention.argtypes, loaded.tw_has_attention.restype = [number], ctypes.c_int32
    return loaded


def instruction_set() -> str | None:
    """The instruction set in use; None where the library was not built."""
    loaded = library()
    return None if loaded is None else loaded.tw_training_set().decode()


def force_instruction_set(name: str) -> None:
    """Use one of INSTRUCTION_SETS in this process; ConfigError if this build or processor lacks it."""
    loaded = library()
    if loaded is None or loaded.tw_training_force(name.encode()):
        raise ConfigError(f"this build or processor has no training kernels for {name!r}")


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """See row_loops.rms_norm."""
    loaded = library()
    if loaded is None:
        return row_loops.rms_norm(x_TD, weight_D, eps)
    x_TD, weight_D = _rows(x_TD), weight_D.contiguous()
    y_TD, inverse_T = torch.empty(x_TD.shape, dtype=x_TD.dtype), torch.empty(x_TD.shape[0])
    loaded.tw_rms_norm(*_sizes(x_TD), *_strided(x_TD), weight_D.data_ptr(), eps, y_TD.data_ptr(), inverse_T.data_ptr())
    return y_TD, inverse_T


def rms_norm_backward(dy_TD: Tensor, x_TD: Tensor, weight_D: Tensor, inverse_T: Tensor) -> tuple[Tensor, Tensor]:
    """See row_loops.rms_norm_backward."""
    loaded = library()
    if loaded is None:
        return row_loops.rms_norm_backward(dy_TD, x_TD, weight_D, inverse_T)
    dy_TD, x_TD, weight_D = _rows(dy_TD), _rows(x_TD), weight_D.contiguous()
    dx_TD = torch.empty(x_TD.shape, dtype=x_TD.dtype)
    of_parts = torch.zeros(torch.get_num_threads(), x_TD.shape[1])
    outputs = (each.data_ptr() for each in (weight_D, inverse_T, dx_TD, of_parts))
    loaded.tw_rms_norm_backward(*_sizes(x_TD), *_strided(dy_TD), *_strided(x_TD), *outputs)
    return dx_TD, of_parts.sum(0).to(weight_D.dtype)


def silu_product(gate_AF: Tensor, up_AF: Tensor) -> Tensor:
    """See row_loops.silu_product."""
    loaded = library()
    if loaded is None:
        return row_loops.silu_product(gate_AF, up_AF)
    gate_AF, up_AF = gate_AF.contiguous(), up_AF.contiguous()
    y_AF = torch.empty_like(gate_AF)
    loaded.tw_silu_product(*_sizes(gate_AF), gate_AF.data_ptr(), up_AF.data_ptr(), y_AF.data_ptr())
    return y_AF


def silu_product_backward(
    gate_AF: Tensor, up_AF: Tensor, dy_AF: Tensor, weight_A: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """See row_loops.silu_product_backward."""
    loaded = library()
    if loaded is None:
        return row_loops.silu_product_backward(gate_AF, up_AF, dy_AF, weight_A)
    inputs = tuple(each.contiguous() for each in (gate_AF, up_AF, dy_AF))
    outputs = torch.empty_like(inputs[0]), torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    dweight_A = None
    if weight_A is not None:
        weight_A = weight_A.contiguous()
        dweight_A = torch.empty_like(weight_A)
    tensors = (*inputs, weight_A, *outputs, dweight_A)
    loaded.tw_silu_product_backward(*_sizes(gate_AF), *(None if each is None else each.data_ptr() for each in tensors))
    return *outputs, dweight_A


def transposed(x_TD: Tensor) -> Tensor:
    """See row_loops.transposed."""
    loaded = library()
    if loaded is None or x_TD.dtype is not torch.bfloat16:
        return row_loops.transposed(x_TD)
    x_TD = _rows(x_TD)
    y_DT = torch.empty(x_TD.shape[::-1], dtype=x_TD.dtype)
    loaded.tw_transpose(torch.get_num_threads(), *x_TD.shape, *_strided(x_TD), y_DT.data_ptr())
    return y_DT


def gather(x_TD: Tensor, row_A: Tensor) -> Tensor:
    """See row_loops.gather."""
    loaded = library()
    if loaded is None:
        return row_loops.gather(x_TD, row_A)
    x_TD, row_A = _rows(x_TD), row_A.contiguous()
    y_AD = torch.empty(row_A.shape[0], x_TD.shape[1], dtype=x_TD.dtype)
    size = x_TD.element_size()
    row_bytes, stride_bytes = x_TD.shape[1] * size, x_TD.stride(0) * size
    pointers = (x_TD.data_ptr(), stride_bytes, row_A.data_ptr(), y_AD.data_ptr())
    loaded.tw_gather(torch.get_num_threads(), row_bytes, row_A.shape[0], *pointers)
    return y_AD


def combine(y_AD: Tensor, row_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    """See row_loops.combine."""
    loaded = library()
    if loaded is None:
        return row_loops.combine(y_AD, row_TK, weights_TK)
    y_AD, row_TK = y_AD.contiguous(), row_TK.contiguous()
    weights_TK = None if weights_TK is None else weights_TK.contiguous()
    out_TD = torch.empty(row_TK.shape[0], y_AD.shape[1], dtype=y_AD.dtype)
    weights = None if weights_TK is None else weights_TK.data_ptr()
    pointers = (y_AD.data_ptr(), row_TK.data_ptr(), row_TK.shape[1], weights, out_TD.data_ptr())
    loaded.tw_combine(*_sizes(out_TD), *pointers)
    return out_TD


def rotate(x_THR: Tensor, cos_TR2: Tensor, sin_TR2: Tensor, layout: str, sign: float = 1.0) -> Tensor:
    """See row_loops.rotate."""
    loaded = library()
    if loaded is None:
        return row_loops.rotate(x_THR, cos_TR2, sin_TR2, layout, sign)
    x_THR = _rows(x_THR)
    y_THR = torch.empty(x_THR.shape, dtype=x_THR.dtype)
    angles = [each.float().contiguous() for each in (cos_TR2, sin_TR2)]
    loaded.tw_rotate(
        torch.get_num_threads(),
        _STORAGE[x_THR.dtype],
        *x_THR.shape,
        ctypes.byref(_heads(x_THR)),
        *(each.data_ptr() for each in angles),
        sign,
        int(layout == "interleaved"),
        ctypes.byref(_heads(y_THR)),
    )
    return y_THR


def cross_entropy(logits_RW: Tensor, targets_R: Tensor) -> Tensor:
    """See row_loops.cross_entropy."""
    loaded = library()
    if loaded is None or not logits_RW.is_contiguous():
        return row_loops.cross_entropy(logits_RW, targets_R)
    targets_R = targets_R.contiguous()
    loss_R = torch.empty(targets_R.shape[0])
    loaded.tw_cross_entropy(*_sizes(logits_RW), logits_RW.data_ptr(), targets_R.data_ptr(), loss_R.data_ptr())
    return loss_R


def add_gradient(total: Tensor, x: Tensor, is_first: bool) -> Tensor:
    """See row_loops.add_gradient."""
    loaded = library()
    if loaded is None or not _is_flat(total, x):
        return row_loops.add_gradient(total, x, is_first)
    squares = torch.zeros(torch.get_num_threads(), dtype=torch.float64)
    pointers = x.data_ptr(), int(is_first), total.data_ptr(), squares.data_ptr()
    loaded.tw_add_gradient(torch.get_num_threads(), _STORAGE[x.dtype], x.numel(), *pointers)
    return squares.sum()


def round_to(y: Tensor, x: Tensor) -> None:
    """See row_loops.round_to."""
    loaded = library()
    if loaded is None or not _is_flat(x, y):
        row_loops.round_to(y, x)
        return
    loaded.tw_round(torch.get_num_threads(), _STORAGE[y.dtype], x.numel(), x.data_ptr(), y.data_ptr())


def _is_flat(whole: Tensor, stored: Tensor) -> bool:
    """Whether two tensors are float32 and a storage of training's, laid out alike in this machine's memory."""
    return (
        whole.device.type == stored.device.type == "cpu"
        and whole.dtype is torch.float32
        and stored.dtype in _STORAGE
        and whole.shape == stored.shape
        and whole.is_contiguous()
        and stored.is_contiguous()
    )


def attention(q_THd: Tensor, k_TGd: Tensor, v_TGv: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """See row_loops.attention, which runs where torch's own kernel is as good."""
    _check_attention(q_THd, k_TGd, v_TGv, lengths)
    loaded = library()
    if loaded is None or not loaded.tw_has_attention(_STORAGE[q_THd.dtype]):
        return row_loops.attention(q_THd, k_TGd, v_TGv, lengths, scale)
    inputs = [_rows(each) for each in (q_THd, k_TGd, v_TGv)]
    y_THv = torch.empty(*q_THd.shape[:2], v_TGv.shape[2], dtype=q_THd.dtype)
    of = Attention(*(_heads(each) for each in (*inputs, y_THv)), *_attention_sizes(q_THd, v_TGv), scale)
    units = len(lengths) * q_THd.shape[1]
    _over_sequences(loaded.tw_attention, loaded.tw_attention_scratch, of, lengths, units, q_THd.dtype)
    return y_THv


def attention_backward(
    q_THd: Tensor, k_TGd: Tensor, v_TGv: Tensor, dy_THv: Tensor, lengths: Sequence[int], scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See row_loops.attention_backward."""
    _check_attention(q_THd, k_TGd, v_TGv, lengths)
    loaded = library()
    if loaded is None:
        return row_loops.attention_backward(q_THd, k_TGd, v_TGv, dy_THv, lengths, scale)
    inputs = [_rows(each) for each in (q_THd, k_TGd, v_TGv, dy_THv)]
    outputs = [torch.empty(each.shape, dtype=each.dtype) for each in inputs[:3]]
    of = AttentionGradient(*(_heads(each) for each in (*inputs, *outputs)), *_attention_sizes(q_THd, v_TGv), scale)
    units = len(lengths) * k_TGd.shape[1]
    _over_sequences(loaded.tw_attention_backward, loaded.tw_attention_backward_scratch, of, lengths, units, q_THd.dtype)
    return outputs[0], outputs[1], outputs[2]


def _check_attention(q_THd: Tensor, k_TGd: Tensor, v_TGv: Tensor, lengths: Sequence[int]) -> None:
    """ValueError for what a kernel would read or write out of bounds."""
    (tokens, heads, width), groups = q_THd.shape, k_TGd.shape[1]
    is_whole = groups > 0 and heads % groups == 0 and min(lengths, default=-1) >= 0 and sum(lengths) == tokens
    if not is_whole or k_TGd.shape != (tokens, groups, width) or v_TGv.shape[:2] != (tokens, groups):
        shapes = ", ".join(str(tuple(each.shape)) for each in (q_THd, k_TGd, v_TGv))
        raise ValueError(f"queries, keys and values {shapes} do not go together, or with lengths {tuple(lengths)}")


def _attention_sizes(q_THd: Tensor, v_TGv: Tensor) -> tuple[int, int, int, int]:
    return q_THd.shape[1], v_TGv.shape[1], q_THd.shape[2], v_TGv.shape[2]


def _over_sequences(
    kernel: Callable[..., None],
    scratch_of: Callable[..., int],
    of: Attention | AttentionGradient,
    lengths: Sequence[int],
    units: int,
    dtype: torch.dtype,
) -> None:
    """Run an attention kernel; of its `units` of work a thread does one at a time."""
    bounds = torch.tensor([0, *itertools.accumulate(lengths)])
    threads, storage, reference = min(torch.get_num_threads(), units), _STORAGE[dtype], ctypes.byref(of)
    floats = scratch_of(storage, reference, max(lengths))
    scratch = torch.empty(threads, floats)
    kernel(threads, storage, reference, len(lengths), bounds.data_ptr(), scratch.data_ptr(), floats)


def latent_heads(
    q_THd: Tensor, kv_THE: Tensor, k_rope_TR: Tensor, cos_TR2: Tensor, sin_TR2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See row_loops.latent_heads."""
    loaded = library()
    if loaded is None:
        return row_loops.latent_heads(q_THd, kv_THE, k_rope_TR, cos_TR2, sin_TR2)
    q_THd, kv_THE, k_rope_TR = q_THd.contiguous(), kv_THE.contiguous(), _rows(k_rope_TR)
    v_THV = q_THd.new_empty(*kv_THE.shape[:2], kv_THE.shape[2] - q_THd.shape[2] + k_rope_TR.shape[1])
    outputs = torch.empty_like(q_THd), torch.empty_like(q_THd), v_THV
    angles = [each.float().contiguous() for each in (cos_TR2, sin_TR2)]
    loaded.tw_latent_heads(
        torch.get_num_threads(),
        _STORAGE[q_THd.dtype],
        q_THd.shape[0],
        ctypes.byref(_latent_shape(q_THd, kv_THE.shape[2], k_rope_TR.shape[1])),
        q_THd.data_ptr(),
        kv_THE.data_ptr(),
        ctypes.byref(Heads(k_rope_TR.data_ptr(), k_rope_TR.stride(0), 0)),
        *(each.data_ptr() for each in (*angles, *outputs)),
    )
    return outputs


def latent_heads_backward(
    dq_THd: Tensor, dk_THd: Tensor, dv_THV: Tensor, cos_TR2: Tensor, sin_TR2: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """See row_loops.latent_heads_backward."""
    loaded = library()
    if loaded is None:
        return row_loops.latent_heads_backward(dq_THd, dk_THd, dv_THV, cos_TR2, sin_TR2)
    gradients = tuple(_rows(each) for each in (dq_THd, dk_THd, dv_THV))
    rope = 2 * cos_TR2.shape[1]
    tokens, heads, width = dq_THd.shape
    kv_width = width - rope + dv_THV.shape[2]
    outputs = [
        torch.empty(shape, dtype=dq_THd.dtype) for shape in (dq_THd.shape, (tokens, heads, kv_width), (tokens, rope))
    ]
    angles = [each.float().contiguous() for each in (cos_TR2, sin_TR2)]
    loaded.tw_latent_heads_backward(
        torch.get_num_threads(),
        _STORAGE[dq_THd.dtype],
        tokens,
        ctypes.byref(_latent_shape(dq_THd, kv_width, rope)),
        *(ctypes.byref(_heads(each)) for each in gradients),
        *(each.data_ptr() for each in (*angles, *outputs)),
    )
    return outputs[0], outputs[1], outputs[2]


def _latent_shape(q_THd: Tensor, kv_width: int, rope: int) -> LatentShape:
    nope = q_THd.shape[2] - rope
    return LatentShape(q_THd.shape[1], nope, rope, kv_width - nope)


def _rows(x: Tensor) -> Tensor:
    """x with the numbers of a row side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _strided(x_TD: Tensor) -> tuple[int, int]:
    return x_TD.data_ptr(), x_TD.stride(0)


def _sizes(x_TD: Tensor) -> tuple[int, int, int, int]:
    rows, width = x_TD.shape
    return torch.get_num_threads(), _STORAGE[x_TD.dtype], rows, width


def _heads(x_THR: Tensor) -> Heads:
    return Heads(x_THR.data_ptr(), x_THR.stride(0), x_THR.stride(1))
