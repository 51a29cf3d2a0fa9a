"""What `tapwater plan` shows: plain facts for JSON, and the same as text."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

from tapwater.cli.text_table import text_table
from tapwater.cost.money import plain

if TYPE_CHECKING:
    from tapwater.cost.evidence import Evidence
    from tapwater.cost.memory import Memory
    from tapwater.cost.plan import Plan, TokenCost
    from tapwater.cost.split import SplitPlan
    from tapwater.cost.sweep import SweepPoint

GB = 1e9
MAX_PARTS = 5  # of a step, the slowest ones


def plan_facts(found: "Plan", cny_per_usd: Decimal) -> dict[str, Any]:
    """Everything `serve` shows of a plan; money is text."""
    serving, point, full = found.serving, found.point, found.full
    rate = found.output_tokens_per_s
    return {
        "machine": serving.machine.name,
        "layout": str(serving.layout),
        "devices": serving.layout.devices,
        "nodes": found.nodes,
        "weights": serving.formats.weights,
        "head": serving.formats.of("head"),
        "cache": serving.formats.cache,
        "prompt_tokens": found.traffic.prompt_tokens,
        "hit_tokens": found.traffic.hit_tokens,
        "output_tokens": found.traffic.output_tokens,
        "utilisation": found.limits.utilisation,
        "requests_per_s": point.requests_per_s,
        "input_tokens_per_s": found.input_tokens_per_s,
        "output_tokens_per_s": rate,
        # the interval of decoding when full, carried over to the planned load
        "output_tokens_per_s_low": rate * full.low / full.tokens_per_s,
        "output_tokens_per_s_high": rate * full.high / full.tokens_per_s,
        "ttft_s": point.ttft_s,
        "tpot_s": point.tpot_s,
        "batch": point.batch,
        "batch_limit": found.batch_limit,
        "largest_batch": found.largest_batch,
        "memory": memory_facts(found.memory),
        "decode_step_s": dict(point.decode.parts),
        "prefill_s": dict(point.prefill.parts),
        "extrapolated": list(dict.fromkeys(point.prefill.extrapolated + full.extrapolated)),
        "usd_per_hour": None if found.usd_per_hour is None else money(found.usd_per_hour),
        "usd_per_million": cost_facts(found.cost, Decimal(1)),
        "usd_per_million_low": cost_facts(cost_between(found)[0], Decimal(1)),
        "usd_per_million_high": cost_facts(cost_between(found)[1], Decimal(1)),
        "cny_per_million": cost_facts(found.cost, cny_per_usd),
        "cny_per_usd": plain(cny_per_usd),
    }


def cost_between(found: "Plan") -> "tuple[TokenCost | None, TokenCost | None]":
    """What tokens cost at the highest and the lowest rates expected: of prompts for input, of decoding for output."""
    if found.cost is None:
        return None, None
    from tapwater.cost.plan import decimal

    started, full = found.point.prefill, found.full
    ends = []
    for end in ("high", "low"):
        prompts, answers = (decimal(each.tokens_per_s / getattr(each, end)) for each in (started, full))
        cost = found.cost
        ends.append(
            replace(
                cost,
                input_miss_usd=cost.input_miss_usd * prompts,
                input_hit_usd=cost.input_hit_usd * prompts,
                output_usd=cost.output_usd * answers,
            )
        )
    return ends[0], ends[1]


def split_facts(found: "SplitPlan", cny_per_usd: Decimal) -> dict[str, Any]:
    """Everything `serve` shows of separate prefill and decode units; rates are a unit's that never idles."""
    kinds = {"prefill": found.prefill, "decode": found.decode}
    return {
        **{
            kind: {
                "layout": str(part.serving.layout),
                "nodes": part.nodes,
                "tokens_per_s": part.estimate.tokens_per_s,
                "tokens_per_s_low": part.estimate.low,
                "tokens_per_s_high": part.estimate.high,
                "requests_per_s": part.requests_per_s,
                "extrapolated": list(part.estimate.extrapolated),
                "step_s": dict(part.estimate.parts),
            }
            for kind, part in kinds.items()
        },
        "batch_limit": found.batch,
        "ttft_s": found.ttft_s,
        "tpot_s": found.tpot_s,
        "usd_per_million": cost_facts(found.cost, Decimal(1)),
        "cny_per_million": cost_facts(found.cost, cny_per_usd),
        "cny_per_usd": plain(cny_per_usd),
    }


def memory_facts(memory: "Memory") -> dict[str, Any]:
    """Bytes of the fullest device."""
    parts = {f"{name}_bytes": number for name, number in memory.by_part.items() if number}
    return {**parts, "total_bytes": memory.total_bytes, "usable_bytes": memory.usable_bytes, "fits": memory.fits}


def cost_facts(cost: "TokenCost | None", rate: Decimal) -> dict[str, str] | None:
    """Money per million tokens as text, to a millionth."""
    if cost is None:
        return None
    return {name.removesuffix("_usd"): money(value * rate) for name, value in vars(cost).items()}


def money(amount: Decimal) -> str:
    return plain(round(amount, 6))


def show_plans(columns: Mapping[str, Mapping[str, Any]]) -> None:
    """One column a plan, by the facts of each."""
    rows: list[tuple[str, ...]] = []

    def row(name: str, show: Callable[[Mapping[str, Any]], str]) -> None:
        rows.append((name, *(show(facts) for facts in columns.values()), ""))

    row("layout", lambda f: f["layout"])
    row("devices, nodes", lambda f: f"{f['devices']}, {f['nodes']:g}")
    row("weights, head, cache", lambda f: f"{f['weights']}, {f['head']}, {f['cache']}")
    row("requests/s", lambda f: f"{f['requests_per_s']:.4g}")
    row("input tokens/s", lambda f: f"{f['input_tokens_per_s']:,.0f}")
    row("output tokens/s", lambda f: f"{f['output_tokens_per_s']:,.0f}")
    row("  expected within", lambda f: f"{f['output_tokens_per_s_low']:,.0f}..{f['output_tokens_per_s_high']:,.0f}")
    row("time to first token", lambda f: seconds(f["ttft_s"]))
    row("time per output token", lambda f: seconds(f["tpot_s"]))
    row("requests generating", lambda f: f"{f['batch']:,.0f}")
    row("  at most, memory for", lambda f: f"{f['batch_limit']:,.0f}, {f['largest_batch']:,}")
    rows += [("memory of a device", *("" for _ in columns), "")]
    for part in ("weights", "cache", "usable"):
        row(f"  {part}", partial(_gigabytes, part))
    rows += [("a step of decoding", *("" for _ in columns), "")]
    for part in _slowest([f["decode_step_s"] for f in columns.values()]):
        row(f"  {part}", partial(_part_of_step, part))
    for currency, sign in (("usd", "$"), ("cny", "¥")):
        rows += [(f"{sign} per million tokens", *("" for _ in columns), "")]
        for part, label in (("input_miss", "input"), ("input_hit", "input, cached"), ("output", "output")):
            row(f"  {label}", partial(_cost, currency, part))
        if currency == "usd":
            row("  output, expected", _expected_cost)
    _write(text_table(("", *columns, ""), rows, "l" + "r" * len(columns)))
    for reason in dict.fromkeys(each for facts in columns.values() for each in facts["extrapolated"]):
        _write(f"extrapolated: {reason}\n")


def show_split(facts: Mapping[str, Any]) -> None:
    kinds = ("prefill", "decode")
    rows = [
        ("layout", *(facts[kind]["layout"] for kind in kinds), ""),
        ("nodes of a unit", *(f"{facts[kind]['nodes']:g}" for kind in kinds), ""),
        ("tokens/s, never idle", *(f"{facts[kind]['tokens_per_s']:,.0f}" for kind in kinds), ""),
        ("  expected from", *(f"{facts[kind]['tokens_per_s_low']:,.0f}" for kind in kinds), ""),
        ("  to", *(f"{facts[kind]['tokens_per_s_high']:,.0f}" for kind in kinds), ""),
        ("requests/s as planned", *(f"{facts[kind]['requests_per_s']:.4g}" for kind in kinds), ""),
        ("time to first, per token", seconds(facts["ttft_s"]), seconds(facts["tpot_s"]), ""),
        ("requests generating", "", f"{facts['batch_limit']:,.0f}", ""),
    ]
    if "demand" in facts:
        demand = facts["demand"]
        rows.append((f"units for {demand['requests_per_s']:g}/s", *(str(demand[f"{k}_units"]) for k in kinds), ""))
        rows.append(("  nodes", *(f"{demand[f'{kind}_nodes']:,.1f}" for kind in kinds), ""))
    _write(text_table(("", "prefill", "decode", ""), rows, "lrr"))
    cost = facts["usd_per_million"]
    if cost is not None:
        _write(f"$ per million: input {cost['input_miss']}, cached {cost['input_hit']}, output {cost['output']}\n")
    for reason in dict.fromkeys(each for kind in kinds for each in facts[kind]["extrapolated"]):
        _write(f"extrapolated: {reason}\n")


def show_machines(found: Sequence[Mapping[str, Any]], refused: Mapping[str, str]) -> None:
    """A line a machine, in the order given, then those that cannot."""
    rows = [
        (
            f["machine"],
            f["layout"],
            f["weights"],
            f"{f['requests_per_s']:.3g}",
            f"{f['output_tokens_per_s']:,.0f}",
            seconds(f["ttft_s"]),
            seconds(f["tpot_s"]),
            _amount(f["usd_per_million"], "input_miss"),
            _amount(f["usd_per_million"], "output"),
            "",
        )
        for f in found
    ]
    header = ("machine", "layout", "weights", "req/s", "tokens/s", "first", "token", "$ in", "$ out", "")
    _write(text_table(header, rows, "lllrrrrrr"))
    if refused:
        _write("\n" + text_table(("cannot", ""), list(refused.items()), "l"))


def show_sweep(points: "Sequence[SweepPoint]") -> None:
    rows = [
        (
            f"{point.batch:,}",
            f"{point.context:,}",
            "" if point.tokens_per_s is None else f"{point.tokens_per_s:,.0f}",
            "" if point.step_s is None else seconds(point.step_s),
            f"{point.device_bytes / GB:,.1f}",
            "" if point.usd_per_million is None else money(point.usd_per_million),
            str(point.layout) if point.fits else "does not fit",
        )
        for point in points
    ]
    _write(text_table(("batch", "context", "tokens/s", "step", "GB", "$/million", "layout"), rows, "rrrrrr"))


def show_training(facts: Mapping[str, Any]) -> None:
    rows = [(name.replace("_", " "), seconds(value)) for name, value in facts["step_by_part_s"].items() if value]
    rows += [
        ("step", seconds(facts["step_s"])),
        ("tokens/s a device", f"{facts['tokens_per_s_per_device']:,.0f}"),
        ("MFU, of the bf16 peak", f"{facts['mfu']:.1%}"),
    ]
    memory = facts["memory"]
    rows += [
        (f"memory, {name.removesuffix('_bytes')}", f"{number / GB:.1f} GB")
        for name, number in memory.items()
        if name.endswith("_bytes")
    ]
    rows += [("days", f"{facts['days']:,.1f}"), ("device-hours", f"{facts['device_hours']:,.0f}")]
    if facts["usd"] is not None:
        rows.append(("cost", f"${Decimal(facts['usd']):,.2f}"))
    _write(text_table(("", "", ""), [(*row, "") for row in rows], "lr"))


def show_evidence(rows: "Sequence[Evidence]") -> None:
    header = ("", "predicted", "measured", "factor", "")
    cells = [(row.name, _rate(row.predicted), _rate(row.measured), f"{row.factor:.2f}", "") for row in rows]
    _write(text_table(header, cells, "lrrr"))
    names: dict[str, list[str]] = {}
    for row in rows:
        assumed = f"; assumed: {row.assumption}" if row.assumption else ""
        names.setdefault(f"{row.unit}; {row.machine}; {row.origin} ({row.date}){assumed}", []).append(row.name)
    for origin, those in names.items():
        several = f"the {len(those)} rows from {those[0]} to {those[-1]}" if len(those) > 1 else those[0]
        _write(f"\n{several}: {origin}\n")


def seconds(value: float) -> str:
    return f"{value:,.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _gigabytes(part: str, facts: Mapping[str, Any]) -> str:
    return f"{facts['memory'].get(f'{part}_bytes', 0) / GB:.1f} GB"


def _part_of_step(part: str, facts: Mapping[str, Any]) -> str:
    return seconds(facts["decode_step_s"].get(part, 0.0))


def _cost(currency: str, part: str, facts: Mapping[str, Any]) -> str:
    return _amount(facts[f"{currency}_per_million"], part)


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _expected_cost(facts: Mapping[str, Any]) -> str:
    if facts["usd_per_million"] is None:
        return ""
    low, high = (_amount(facts[f"usd_per_million_{end}"], "output") for end in ("low", "high"))
    return f"{low}..{high}"


def _amount(cost: Mapping[str, str] | None, part: str) -> str:
    return "" if cost is None else f"{Decimal(cost[part]):.4f}"


def _slowest(steps: Sequence[Mapping[str, float]]) -> list[str]:
    longest: dict[str, float] = {}
    for step in steps:
        for part, value in step.items():
            longest[part] = max(value, longest.get(part, 0.0))
    return sorted((part for part in longest if longest[part]), key=longest.__getitem__, reverse=True)[:MAX_PARTS]


def _write(text: str) -> None:
    sys.stdout.write(text)
