"""The numbers behind a report's plots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tapwater.config import ModelConfig, preset, preset_names, replace_fields
from tapwater.config.model import MLA_FIELDS
from tapwater.cost.counts import parameters
from tapwater.cost.formats import CACHE_FORMATS, cache_bytes_per_token
from tapwater.cost.hardware import Machine
from tapwater.cost.layout import Layout
from tapwater.cost.memory import largest_batch, training_memory
from tapwater.cost.plan import MILLION, SECONDS_PER_HOUR, decimal, node_share, rent_of
from tapwater.cost.recipe import Recipe
from tapwater.cost.throughput import Serving, decode
from tapwater.cost.training import TrainingStep, training_step
from tapwater.errors import ConfigError

TRAINING_DEVICES = 2048  # V3's (report, section 1)
TRAINING_SEQUENCE = 4096
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Training:
    """The fastest layout of TRAINING_DEVICES devices that fits, of those tried."""

    model: str
    total: int
    active: int
    layout: Layout
    step: TrainingStep
    usd_per_trillion: Decimal


def cost_over_batch(serving: Serving, contexts: Sequence[int], utilisation: float) -> dict[int, Curve]:
    """By context, dollars per million output tokens at each doubling of the batch that memory holds."""
    curves: dict[int, Curve] = {}
    for context in contexts:
        room = _room(serving, context)
        batches = [2**power for power in range(room.bit_length()) if 2**power < room] + ([room] if room else [])
        curves[context] = [(batch, output_usd(serving, batch, context, utilisation)) for batch in batches]
    return {context: curve for context, curve in curves.items() if curve}


def cost_over_context(serving: Serving, contexts: Sequence[int], utilisation: float) -> Curve:
    """Dollars per million output tokens when as many requests generate as memory holds."""
    rooms = ((context, _room(serving, context)) for context in contexts)
    return [(context, output_usd(serving, room, context, utilisation)) for context, room in rooms if room]


def output_usd(serving: Serving, batch: int, context: int, utilisation: float) -> float:
    """For a plot; 0 for a machine without rent."""
    rent = serving.machine.usd_per_hour
    if rent is None:
        return 0.0
    second = rent_of(rent, node_share(serving.layout, serving.machine)) / SECONDS_PER_HOUR
    rate = decimal(decode(serving, batch, context).tokens_per_s)
    return float(second * MILLION / rate / decimal(utilisation))


def cache_bytes(config: ModelConfig) -> dict[str, dict[str, float]]:
    """Bytes per token by attention and cache format: the model's own, and the same heads with MHA, GQA-8 and MQA."""
    heads = config.num_attention_heads
    widths = {"MHA": heads, "GQA, 8 heads": 8, "MQA": 1}
    kinds = {name: _grouped(config, each) for name, each in widths.items() if heads % each == 0}
    own = "MLA" if config.is_mla else f"{config.num_key_value_heads} heads of keys and values"
    kinds[f"{own} (this model)"] = config
    return {
        name: {
            format: cache_bytes_per_token(each, format)
            for format in CACHE_FORMATS
            if format != "fp8_line" or each.is_mla
        }
        for name, each in kinds.items()
    }


def family_training(machine: Machine) -> list[Training]:
    """What a trillion tokens cost for each preset, smallest first; those that fit no layout tried are left out."""
    if machine.usd_per_hour is None:
        raise ConfigError(f"{machine.name} has no rent: training has no cost on it")
    rent = machine.usd_per_hour.amount / machine.devices
    found: list[Training] = []
    for name in preset_names():
        config = preset(name)
        steps = _training_steps(config, machine)
        if config.max_position_embeddings < TRAINING_SEQUENCE or not steps:
            continue
        layout, step = min(steps.items(), key=lambda each: each[1].device_hours(1e12))
        count = parameters(config)
        usd = step.usd(1e12, rent)
        found.append(Training(name, count.total, count.active_without_input_embedding, layout, step, usd))
    return sorted(found, key=lambda each: each.total)


def step_parts(parts: Mapping[str, float]) -> list[tuple[str, float]]:
    """Seconds by part, longest first, without those that take none."""
    return sorted(((name, value) for name, value in parts.items() if value > 0), key=lambda each: -each[1])


def _training_steps(config: ModelConfig, machine: Machine) -> dict[Layout, TrainingStep]:
    steps: dict[Layout, TrainingStep] = {}
    experts = (8, 64) if config.is_moe else (1,)
    splits = [(tp, ep, again) for tp in (1, 2, 4, 8) for again in ("selective", "full") for ep in experts]
    for pp in (1, 4, 16):
        for tp, ep, recomputation in splits:
            dp = TRAINING_DEVICES // pp // tp
            layout = Layout(dp=dp, tp=tp, ep=ep, pp=pp)
            try:
                recipe = Recipe(
                    TRAINING_SEQUENCE,
                    4 * dp * pp,
                    schedule="zb1p",
                    recomputation=recomputation,
                    overlap="shared_experts",
                )
                if training_memory(config, machine, layout, recipe).fits:
                    steps.setdefault(layout, training_step(config, machine, layout, recipe))
            except ConfigError:  # of a candidate: more stages than layers, heads that do not divide, a short context
                continue
    return steps


def _room(serving: Serving, context: int) -> int:
    return largest_batch(serving.config, serving.machine, serving.layout, context=context, formats=serving.formats)


def _grouped(config: ModelConfig, heads: int) -> ModelConfig:
    """The same layers and heads with keys and values of so many heads."""
    width = config.mla.v_head_dim if config.is_mla else config.attention_head_dim
    changes: dict[str, Any] = {"num_key_value_heads": heads, "head_dim": width}
    if config.is_mla:  # model types of MLA have no other attention, nor V2's and V3's gates
        changes |= dict.fromkeys((*MLA_FIELDS, "q_lora_rank", "rope_scaling"))
        changes |= {"model_type": "deepseek", "topk_method": "greedy", "n_group": 1, "topk_group": 1}
    return replace_fields(config, changes, f"{heads} heads of keys and values")
