"""The nearest steps, scale and minimum of groups of weights.

Fitting what a fit's result stands for changes no bit. That takes care where float16 is coarse - subnormal scales, a
minimum far from a narrow range - and is why the values that set a range are made to take its last steps.

Groups are [.., groups, GROUP] in float32; q comes back as int8, scale and minimum [.., groups] as float16.
"""

import torch
from torch import Tensor

REFITS = 2  # of q4_min: 6% less error than the bare range on normal weights; a third would bring 1% more
NARROWEST = 1024  # a range this much smaller than its minimum is within float16's error of the minimum

Ends = list[tuple[Tensor, Tensor | float]]  # where the values that set the range are, and the steps they take


def fit_q4(groups: Tensor) -> tuple[Tensor, Tensor]:
    # the side with the larger magnitude gets the eighth step: -8 exists, +8 does not
    at = groups.abs().argmax(-1, keepdim=True)
    scale = _checked(groups.gather(-1, at) / -8)
    return _steps(groups, scale, 0, -8, 7, [(at, -8)]).to(torch.int8), scale[..., 0]


def fit_q8(groups: Tensor) -> tuple[Tensor, Tensor]:
    largest, at = groups.abs().max(-1, keepdim=True)
    scale = _checked(largest / 127)
    q = _steps(groups, scale, 0, -127, 127, [(at, 127 * groups.gather(-1, at).sign())])
    return q.to(torch.int8), scale[..., 0]


def fit_q4_min(groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The range from least to greatest; then least squares over the steps just taken, where that is nearer.

    Weights that lie on a grid already are met by their range without error, and nothing is nearer than that.
    """
    low, low_at = groups.min(-1, keepdim=True)
    high, high_at = groups.max(-1, keepdim=True)
    ends: Ends = [(low_at, 0), (high_at, 15)]
    q, scale, minimum, error = _with_minimum(groups, _checked((high - low) / 15), _checked(low), ends)
    mean, latest = groups.mean(-1, keepdim=True), q
    for _ in range(REFITS):
        centre = latest.mean(-1, keepdim=True)
        spread = (latest - centre).square_().sum(-1, keepdim=True).clamp_(min=0.5)  # 31/32 or more, or all are equal
        slope = ((latest - centre) * groups).sum(-1, keepdim=True).div_(spread).clamp_(min=0)
        refit = _with_minimum(groups, _half(slope), _half(mean - slope * centre), ends)
        latest, nearer = refit[0], refit[3] < error
        q, scale, minimum, error = (
            torch.where(nearer, new, old) for new, old in zip(refit, (q, scale, minimum, error), strict=True)
        )
    return q.to(torch.int8), scale[..., 0], minimum[..., 0]


def _with_minimum(groups: Tensor, scale: Tensor, minimum: Tensor, ends: Ends) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Steps (float32), scale, minimum and squared error of one try."""
    scale = torch.where(15 * NARROWEST * scale.float() < minimum.float().abs(), 0, scale)
    q = _steps(groups, scale, minimum, 0, 15, ends)
    error = (q * scale.float()).add_(minimum).sub_(groups).square_().sum(-1, keepdim=True)
    return q, scale, minimum, error


def _steps(groups: Tensor, scale: Tensor, minimum: Tensor | float, low: int, high: int, ends: Ends) -> Tensor:
    inverse = torch.where(scale == 0, 0.0, 1.0 / scale.float())
    q = (groups - minimum).mul_(inverse).round_().clamp_(low, high)
    for at, step in ends:
        q.scatter_(-1, at, torch.where(scale == 0, 0.0, step))
    return q


def _half(x: Tensor) -> Tensor:
    return x.to(torch.float16) + 0.0  # no -0: what it stands for comes back as 0


def _checked(x: Tensor) -> Tensor:
    half = _half(x)
    if not half.isfinite().all():
        raise ValueError("a group's scale does not fit float16: weights beyond 65504 cannot be quantised")
    return half
