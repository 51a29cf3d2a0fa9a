"""The same model with packed weights, computed by native kernels: a whole step is one call.

It serves and scores, and is not differentiable: training and changing the architecture happen in `Transformer`, which
is also its specification. Hidden states and logits are bit-identical for a request whatever shares its step, however
its prompt is cut into chunks, and on any number of threads.
"""

import ctypes
from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tapwater.config import ModelConfig
from tapwater.model.attention import LATENT_NORM_EPS
from tapwater.model.context import CacheView
from tapwater.model.rope import rotation, softmax_scale
from tapwater.model.transformer import Output, Prediction
from tapwater.ops.cache_format import CacheFormat, for_keys, segment_bytes
from tapwater.ops.native import OUT_OF_RANGE, Kernels
from tapwater.ops.native_model import NativeModel, Step
from tapwater.ops.quant import PackedWeight


@dataclass(frozen=True)
class PackedWeights:
    """Weights by the names of Transformer's state dict: packed matrices, and float32 norms and gates.

    Routed experts are stacks ("layers.3.mlp.experts.gate_proj"). MLA's kv_b_proj is three stacks over heads:
    "key_up" [C x N] (W_UK transposed, for the absorbed form), "kv_b_key" [N x C] and "kv_b_value" [V x C].
    """

    matrices: Mapping[str, PackedWeight]
    tensors: Mapping[str, Tensor]


class PackedTransformer:
    """`threads` threads compute; the cache is kept in `cache_format`. For one calling thread at a time; close it."""

    def __init__(self, config: ModelConfig, weights: PackedWeights, threads: int, cache_format: CacheFormat) -> None:
        self.config = config
        self.cache_format = cache_format
        self.entry_size = entry_size(config, cache_format)
        self.kernels = Kernels(threads)
        self._weights = weights
        self._native = self._with_positions(min(4096, config.max_position_embeddings))

    def close(self) -> None:
        """End the threads."""
        self.kernels.close()

    def new_pages(self, num_pages: int, page_size: int) -> Tensor:
        """An empty cache: bytes [L, P, S, bytes of an entry]."""
        shape = self.config.num_hidden_layers, num_pages, page_size, self.entry_size
        return torch.zeros(shape, dtype=torch.uint8)

    def forward(self, tokens_T: Tensor, positions_T: Tensor, view: CacheView) -> Output:
        """Hidden states [T, D] of a step's tokens; their cache entries are written."""
        _check(self.config, self.entry_size, tokens_T, positions_T, view)
        self._grow(max(view.context_lengths))
        pages = view.pages_LPSX
        queries, contexts = array("q", view.query_lengths), array("q", view.context_lengths)
        step = Step(
            tokens=tokens_T.shape[0],
            token_ids=tokens_T.data_ptr(),
            positions=positions_T.data_ptr(),
            slots=view.slots_T.data_ptr(),
            requests=len(view.query_lengths),
            absorbed=view.num_generating,
            query_lengths=queries.buffer_info()[0],
            context_lengths=contexts.buffer_info()[0],
            page_table=view.page_table_BP.data_ptr(),
            pages_per_request=view.page_table_BP.shape[1],
            pages=pages.data_ptr(),
            cache_format=self.cache_format.number,
            num_pages=pages.shape[1],
            page_size=pages.shape[2],
            entry_bytes=pages.shape[3],
            layer_bytes=pages.stride(0),
        )
        hidden_TD = torch.empty(tokens_T.shape[0], self.config.hidden_size)
        kernels = self.kernels
        status = kernels.library.tw_forward(
            kernels.runner, ctypes.byref(self._native.struct), ctypes.byref(step), hidden_TD.data_ptr()
        )
        if status == OUT_OF_RANGE:
            raise ValueError(_out_of_range(self.config.vocab_size, self._positions, tokens_T, positions_T, view))
        kernels.check(status)
        return Output(hidden_TD, None)

    __call__ = forward

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Next-token logits [R, vocab_size] in float32."""
        return self.predict(hidden_RD).logits_RW

    def predict(self, hidden_RD: Tensor) -> Prediction:
        """As `Transformer.predict`, in one pass over the logits."""
        if hidden_RD.dtype != torch.float32 or hidden_RD.ndim != 2 or hidden_RD.shape[1] != self.config.hidden_size:
            raise ValueError(
                f"hidden states must be float32 [rows, {self.config.hidden_size}], "
                f"got {hidden_RD.dtype} {list(hidden_RD.shape)}"
            )
        hidden_RD = hidden_RD.contiguous()
        rows = hidden_RD.shape[0]
        logits_RW = torch.empty(rows, self.config.vocab_size)
        likeliest, finite = (ctypes.c_int64 * rows)(), (ctypes.c_bool * rows)()
        kernels = self.kernels
        struct = ctypes.byref(self._native.struct)
        kernels.check(
            kernels.library.tw_logits(
                kernels.runner, struct, hidden_RD.data_ptr(), rows, logits_RW.data_ptr(), likeliest, finite
            )
        )
        return Prediction(logits_RW, list(likeliest), list(finite))

    def _grow(self, positions: int) -> None:
        """Have rotations of at least `positions` positions, or of all that the model has."""
        positions = min(positions, self.config.max_position_embeddings)
        if positions > self._positions:
            self._native = self._with_positions(min(2 * positions, self.config.max_position_embeddings))

    def _with_positions(self, positions: int) -> NativeModel:
        self._positions = positions
        turned = rotation(self.config, torch.arange(positions))
        return NativeModel(
            self.config,
            self._weights.matrices,
            self._weights.tensors,
            softmax_scale(self.config),
            LATENT_NORM_EPS,
            turned.cos.contiguous(),
            turned.sin.contiguous(),
        )


def entry_size(config: ModelConfig, format: CacheFormat) -> int:
    """Bytes of a token in one layer's cache: keys, then values of every head, or the latent and the rope key."""
    if config.is_mla:
        latent, rope = config.mla.kv_lora_rank, config.mla.qk_rope_head_dim
        return segment_bytes(format, latent) + segment_bytes(for_keys(format), rope)
    width = config.attention_head_dim
    return config.num_key_value_heads * (segment_bytes(for_keys(format), width) + segment_bytes(format, width))


def _check(config: ModelConfig, entry_size: int, tokens_T: Tensor, positions_T: Tensor, view: CacheView) -> None:
    """ValueError for whatever would make the kernels read or write past an array, but for the indices themselves: those
    the kernels look at before anything else."""
    total = sum(view.query_lengths)
    tokens, positions, slots = (tensor.shape[0] for tensor in (tokens_T, positions_T, view.slots_T))
    if not total == tokens == positions == slots or not total:
        raise ValueError(
            f"{tokens} tokens, {positions} positions, {slots} slots and lengths that add up to {total} disagree"
        )
    for tensor in (tokens_T, positions_T, view.slots_T, view.page_table_BP):
        if tensor.dtype != torch.int64 or not tensor.is_contiguous():
            raise ValueError("tokens, positions, slots and the page table must be contiguous int64")
    pages = view.pages_LPSX
    shape = pages.shape[0], pages.shape[3]
    if pages.dtype != torch.uint8 or not pages.is_contiguous() or shape != (config.num_hidden_layers, entry_size):
        raise ValueError("the cache must come from new_pages of this model")
    if not 0 <= view.num_generating <= len(view.query_lengths):
        raise ValueError(f"{view.num_generating} of {len(view.query_lengths)} requests cannot be generating")
    room = view.page_table_BP.shape[1] * pages.shape[2]
    lengths = zip(view.query_lengths, view.context_lengths, strict=True)
    if len(view.query_lengths) != view.page_table_BP.shape[0] or any(not 0 < q <= c <= room for q, c in lengths):
        raise ValueError(f"a request needs 0 < query length <= context length <= {room}, the tokens its pages hold")


def _out_of_range(vocab: int, positions: int, tokens_T: Tensor, positions_T: Tensor, view: CacheView) -> str:
    """Which index of a step names something there is not."""
    num_pages, page_size = view.pages_LPSX.shape[1:3]
    for name, tensor, size in (
        ("token", tokens_T, vocab),
        ("position", positions_T, positions),
        ("slot", view.slots_T, num_pages * page_size),
        ("page", view.page_table_BP, num_pages),
    ):
        low, high = (int(bound) for bound in torch.aminmax(tensor))
        if low < 0 or high >= size:
            return f"{name} {low if low < 0 else high} is outside 0..{size - 1}"
    raise AssertionError("the kernels refuse indices that are in range")
