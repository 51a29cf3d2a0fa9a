"""How the learning rate and the batch change over a run, as pure functions of the step."""

from math import cos, pi

from tapwater.config.pretrain import BatchSection, PretrainConfig, ScheduleSection
from tapwater.errors import ConfigError


def learning_rate_share(step: int, total_steps: int, section: ScheduleSection) -> float:
    """The rate of a step (0 is the first) as a share of the highest: linear warm-up from 0, then `section.kind`.

    The first step has 1 / warmup_steps, step warmup_steps - 1 has 1, and the last step of `wsd` and `cosine` has
    final_share. `step` drops by step_factor once each share of step_at is behind (V2 report section 3.1.2: 0.316
    after 60% and 90% of the tokens). Raises ConfigError when the run is shorter than its warm-up, or when the decay
    of `wsd` would begin within it.
    """
    warmup, done = section.warmup_steps, step + 1
    if warmup > total_steps:
        raise ConfigError(f"schedule: warmup_steps {warmup} is more than the {total_steps} steps of the run")
    if section.kind == "wsd" and warmup > (1 - section.decay_share) * total_steps:
        raise ConfigError(
            f"schedule: decay_share {section.decay_share} of {total_steps} steps begins within the warm-up "
            f"of {warmup}; lower one of them"
        )
    if done <= warmup:
        return done / warmup
    match section.kind:
        case "constant":
            return 1.0
        case "step":
            return section.step_factor ** sum(step >= share * total_steps for share in section.step_at)
        case "wsd":
            left = max(0.0, (total_steps - done) / (section.decay_share * total_steps)) if section.decay_share else 1.0
            return section.final_share + (1 - section.final_share) * min(1.0, left)
        case "cosine":
            way = min(1.0, (done - warmup) / (total_steps - warmup))
            return section.final_share + (1 - section.final_share) * (1 + cos(pi * way)) / 2


def sequences_at(step: int, section: BatchSection, per_round: int) -> int:
    """Rows of a step (0 is the first): from ramp_from linearly to `sequences` over ramp_steps, then `sequences`.

    Growth is by whole multiples of `per_round`, the rows that all processes take at a time. The V2 report says only
    that its batch grew "gradually"; a straight line is our reading.
    """
    if section.ramp_from is None or step >= section.ramp_steps:
        return section.sequences
    grown = (section.sequences - section.ramp_from) * step // section.ramp_steps
    return section.ramp_from + grown // per_round * per_round


def rows_per_round(config: PretrainConfig) -> int:
    """The rows that all processes take at a time."""
    return config.batch.micro_sequences * config.parallel.dp
