"""Rotary position embedding and its YaRN extension, with both of DeepSeek's mscale rules."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tapwater.config import ModelConfig, RopeScaling


class Rotation(NamedTuple):
    """Cosine and sine of every rotated pair's angle, [T, rope_dim / 2], float32."""

    cos: Tensor
    sin: Tensor


def rotation(config: ModelConfig, positions_T: Tensor) -> Rotation:
    """The rotation of each position, YaRN's cosine/sine factor included."""
    angles = positions_T.float()[:, None] * inverse_frequencies(config).to(positions_T.device)
    factor = _rotation_factor(config.rope_scaling)
    return Rotation(angles.cos() * factor, angles.sin() * factor)


def inverse_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of each pair, [rope_dim / 2]; YaRN stretches the slow pairs by `factor` (report 3.1.4).

    Pairs that turn more than beta_fast times within the original context keep their frequency, those that turn less
    than beta_slow times are interpolated, the ones between are blended.
    """
    dim, base, scaling = config.rope_dim, config.rope_theta, config.rope_scaling
    plain = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    if scaling is None:
        return plain

    def pair_turning(times: float) -> float:
        turns_at_one = scaling.original_max_position_embeddings / (2 * math.pi * times)
        return dim * math.log(turns_at_one) / (2 * math.log(base))

    low = max(math.floor(pair_turning(scaling.beta_fast)), 0)
    high = min(math.ceil(pair_turning(scaling.beta_slow)), dim - 1)
    width = max(high - low, 0.001)
    interpolated = ((torch.arange(dim // 2, dtype=torch.float32) - low) / width).clamp(0, 1)
    return plain / scaling.factor * interpolated + plain * (1 - interpolated)


def softmax_scale(config: ModelConfig) -> float:
    """The factor on q.k: 1/sqrt(head width), times YaRN's mscale squared when `mscale_all_dim` is set.

    The square applies to the whole product, nope and rope parts alike. Leaving it out is the classic bug: position 0
    looks right and everything after it is slightly wrong.
    """
    scale = config.qk_head_dim**-0.5
    scaling = config.rope_scaling
    # transformers applies the square only in its DeepSeek classes; Llama-style YaRN scales cosine and sine instead.
    if scaling is None or not scaling.mscale_all_dim or not config.is_mla:
        return scale
    return scale * yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2


def yarn_mscale(factor: float, coefficient: float) -> float:
    """sqrt(t) = 0.1 * coefficient * ln(factor) + 1: the attention temperature of YaRN."""
    return 0.1 * coefficient * math.log(factor) + 1.0 if factor > 1 else 1.0


def _rotation_factor(scaling: RopeScaling | None) -> float:
    """The factor on cosine and sine: the ratio of both mscales, so 1 for DeepSeek; the whole of YaRN's if neither."""
    if scaling is None:
        return 1.0
    if not scaling.mscale or not scaling.mscale_all_dim:
        return yarn_mscale(scaling.factor, 1.0)
    return yarn_mscale(scaling.factor, scaling.mscale) / yarn_mscale(scaling.factor, scaling.mscale_all_dim)
