"""Pipeline schedules: how long devices wait, and how much they hold meanwhile (DeepSeek-V3 report, Table 2)."""

from collections.abc import Mapping

from tapwater.cost.formats import known
from tapwater.errors import ConfigError

SCHEDULES: Mapping[str, str] = {
    "1f1b": "one forward, one backward in turn",
    "zb1p": "zero bubble: gradients of weights fill the gaps",
    "dualpipe": "micro-batches from both ends; every device holds two stages",
}


def bubble_s(schedule: str, pp: int, *, forward_s: float, backward_s: float, weight_s: float) -> float:
    """Seconds of a step in which a device waits, from one stage's times of one micro-batch.

    `backward_s` is the whole backward, `weight_s` the part of it that only makes gradients of weights. An overlapped
    forward and backward of dualpipe takes the sum of both here: what overlapping saves is already left out of them.
    ConfigError for an unknown schedule or an odd pp in dualpipe.
    """
    check_schedule(schedule, pp)
    if pp == 1:
        return 0.0
    match schedule:
        case "1f1b":
            wait = (pp - 1) * (forward_s + backward_s)
        case "zb1p":
            wait = (pp - 1) * (forward_s + backward_s - 2 * weight_s)
        case _:
            wait = (pp / 2 - 1) * (forward_s + 2 * backward_s - 3 * weight_s)
    return max(wait, 0.0)


def device_stages(schedule: str, pp: int) -> list[tuple[int, ...]]:
    """The stages each device of a pipeline holds."""
    check_schedule(schedule, pp)
    if schedule == "dualpipe":
        return [(stage, pp - 1 - stage) for stage in range(pp)]
    return [(stage,) for stage in range(pp)]


def in_flight(schedule: str, stage: int, pp: int) -> float:
    """Micro-batches whose activations a device holds at the most for `stage`: pp - stage, in dualpipe (pp + 1) / 2.

    Table 2's pp + 1 of dualpipe belong to a device's two stages together.
    """
    return (pp + 1) / 2 if schedule == "dualpipe" else pp - stage


def check_schedule(schedule: str, pp: int) -> None:
    """ConfigError for a schedule that does not exist, or not with so many stages."""
    known(schedule, SCHEDULES, "pipeline schedule")
    if schedule == "dualpipe" and pp % 2:
        raise ConfigError(f"schedule dualpipe needs an even number of pipeline stages, got pp {pp}")
