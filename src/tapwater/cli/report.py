"""A plan as one HTML file that needs nothing else: plots, tables, and where every number is from."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from decimal import Decimal
from html import escape
from pathlib import Path

from tapwater.cli import report_plots as plots
from tapwater.cli.plan_tables import GB, cost_between, money, seconds
from tapwater.cli.report_parts import drawing, grid, page, section
from tapwater.cost import figures
from tapwater.cost.evidence import evidence
from tapwater.cost.hardware import Figure, Machine, Rent, machine
from tapwater.cost.plan import Plan

TRAINED_ON = "h800"
CONTEXTS = (1024, 4096, 32768, 131072)

FORMULAS = (
    ("weights, active weights, FLOPs", "cost.counts: parameters, flops_per_token"),
    ("bytes of weights and cache", "cost.formats: weight_bytes, cache_bytes_per_token"),
    ("what fits", "cost.memory: largest_batch, serving_memory; nine tenths of a device are usable"),
    ("what a step computes and reads", "cost.work: decode_work, prefill_work; experts touched as if chosen evenly"),
    (
        "how long that takes",
        "cost.roofline: the slower of computing and reading, part by part; cost.kernels where measured",
    ),
    ("waiting", "cost.load: Little's law for the batch, M/D/1 for prompts"),
    ("cost of a token", "cost.plan: rent / 3600 / utilisation x seconds of the unit that a token takes"),
    ("training", "cost.training: training_step; cost.memory: training_memory"),
)


def write_report(
    path: Path, model: str, answers: Mapping[str, Plan], refused: Mapping[str, str], cny_per_usd: Decimal
) -> None:
    """Replace `path` by the report; `answers` are the plan and what it is compared with, `refused` why others are not.

    Both are by name.
    """
    path.write_text(report(model, answers, refused, cny_per_usd), encoding="utf-8")


def report(model: str, answers: Mapping[str, Plan], refused: Mapping[str, str], cny_per_usd: Decimal) -> str:
    """The page."""
    base = next(iter(answers.values()))
    title = f"{model} on {base.serving.machine.name}"
    traffic = base.traffic
    sections = (
        _plans(answers, cny_per_usd),
        *(f"<p>{escape(name)}: cannot: {escape(reason)}</p>\n" for name, reason in refused.items()),
        _cost_plots(base),
        _time_plots(answers),
        _cache(base),
        _training(),
        _evidence(),
        _interval(answers),
        _sources({each.serving.machine.name: each.serving.machine for each in answers.values()}),
        _table("Formulas", ("what", "where in tapwater"), FORMULAS),
    )
    said = (
        f"Prompts of {traffic.prompt_tokens:,} tokens, {traffic.hit_tokens:,} of them cached, answers "
        f"of {traffic.output_tokens:,}; loaded to {base.limits.utilisation:.0%} of capacity."
    )
    return page(title, "plan", base.serving.machine.description, said, sections)


def _plans(answers: Mapping[str, Plan], rate: Decimal) -> str:
    def costs(each: Plan, name: str) -> str:
        if each.cost is None:
            return "no rent known"
        usd: Decimal = getattr(each.cost, name)
        return f"${money(usd)} (¥{money(usd * rate)})"

    rows = [
        ("layout", *(f"{p.serving.layout}, {p.serving.layout.devices} devices" for p in answers.values())),
        ("nodes of a unit", *(f"{p.nodes:g}" for p in answers.values())),
        ("weights, cache", *(f"{p.serving.formats.weights}, {p.serving.formats.cache}" for p in answers.values())),
        ("requests per second", *(f"{p.point.requests_per_s:.4g}" for p in answers.values())),
        ("output tokens per second", *(f"{p.output_tokens_per_s:,.0f}" for p in answers.values())),
        ("  expected within", *(_within(p) for p in answers.values())),
        ("input tokens per second", *(f"{p.input_tokens_per_s:,.0f}" for p in answers.values())),
        ("time to first token", *(seconds(p.point.ttft_s) for p in answers.values())),
        ("time per output token", *(seconds(p.point.tpot_s) for p in answers.values())),
        ("requests generating, at most", *(f"{p.point.batch:,.0f}, {p.batch_limit:,.0f}" for p in answers.values())),
        ("memory: weights, cache", *(_memory(p) for p in answers.values())),
        ("a million input tokens", *(costs(p, "input_miss_usd") for p in answers.values())),
        ("a million cached input tokens", *(costs(p, "input_hit_usd") for p in answers.values())),
        ("a million output tokens", *(costs(p, "output_usd") for p in answers.values())),
        ("  expected within", *(_cost_within(p) for p in answers.values())),
    ]
    return _table("The plan", ("", *answers), rows, right=len(answers))


def _within(found: Plan) -> str:
    rate, full = found.output_tokens_per_s, found.full
    return f"{rate * full.low / full.tokens_per_s:,.0f} to {rate * full.high / full.tokens_per_s:,.0f}"


def _cost_within(found: Plan) -> str:
    low, high = cost_between(found)
    return "" if low is None or high is None else f"${money(low.output_usd)} to ${money(high.output_usd)}"


def _memory(found: Plan) -> str:
    memory = found.memory
    return f"{memory.weights_bytes / GB:.1f}, {memory.cache_bytes / GB:.1f} of {memory.usable_bytes / GB:.1f} GB usable"


def _cost_plots(base: Plan) -> str:
    serving, share = base.serving, base.limits.utilisation
    longest = serving.config.max_position_embeddings
    contexts = [each for each in CONTEXTS if each <= longest] or [longest]
    curves = figures.cost_over_batch(serving, contexts, share)
    rent = serving.machine.usd_per_hour
    if rent is None or rent.amount == 0 or not curves:
        return section("What output costs", "<p>No rent, or no context that fits: nothing to plot.</p>")
    doublings = [2**power for power in range(8, longest.bit_length()) if 2**power <= longest] or [longest]
    over_context = figures.cost_over_context(serving, doublings, share)
    y = "$ per million output tokens"
    named = {f"{context:,} cached": curve for context, curve in curves.items()}
    dearest, cheapest = (bound(usd for curve in curves.values() for _, usd in curve) for bound in (max, min))
    return section(
        "What output costs",
        '<div class="plots">'
        + drawing("batch", f"{y} over the batch: from {dearest:.3g} down to {cheapest:.3g}",
                  plots.lines(named, "requests generating on a unit", y),
                  f"Layout {serving.layout}, up to what memory holds.")
        + drawing("context", f"{y} over context: {over_context[0][1]:.3g} at {over_context[0][0]:,}, "
                  f"{over_context[-1][1]:.3g} at {over_context[-1][0]:,}",
                  plots.lines({"": over_context}, "cached tokens of a request", y), "As many requests as memory holds.")
        + "</div>",
    )  # fmt: skip


def _time_plots(answers: Mapping[str, Plan]) -> str:
    def chart(name: str, caption: str, steps: Mapping[str, Mapping[str, float]]) -> str:
        order: dict[str, float] = {}
        for step in steps.values():
            for part, value in step.items():
                order[part] = max(order.get(part, 0.0), value)
        parts = [part for part, _ in figures.step_parts(order)]
        groups = {part: {each: step.get(part, 0.0) * 1e3 for each, step in steps.items()} for part in parts}
        slowest = f"{parts[0]}, {seconds(order[parts[0]])}"
        height = max(2.2, 0.9 + 0.32 * len(parts) * max(1, len(steps) * 0.6))
        return drawing(name, f"{caption}: the longest part is {slowest}", plots.bars(groups, "ms"), caption, height)

    decode = {name: each.point.decode.parts for name, each in answers.items()}
    started = {name: each.point.prefill.parts for name, each in answers.items()}
    return section(
        "Where the time goes",
        '<div class="plots">'
        + chart("decode", "A step of decoding at the planned load", decode)
        + chart("prefill", "Prompts, from start to first token", started)
        + "</div>",
    )


def _cache(base: Plan) -> str:
    kinds = figures.cache_bytes(base.serving.config)
    formats = list(dict.fromkeys(format for each in kinds.values() for format in each))
    shown = {
        kind: {format: each[format] / 1e3 for format in ("bfloat16", "q8", "6bit")} for kind, each in kinds.items()
    }
    rows = [
        (
            kind,
            *(
                f"{each[format] / 1e3:,.1f} / {each[format] * 2**17 / GB:,.2f}" if format in each else ""
                for format in formats
            ),
        )
        for kind, each in kinds.items()
    ]
    summary = ", ".join(f"{kind} {each['bfloat16'] / 1e3:,.1f} kB" for kind, each in kinds.items())
    figure = drawing("cache", f"cache per token in bfloat16: {summary}",
                     plots.bars(shown, "kB per token (1 kB = 1000 bytes), logarithmic", logarithmic=True),
                     "The same layers and heads with other attention.")  # fmt: skip
    table = grid(("", *formats), rows, len(formats), "kB per token / GB per sequence of 131,072 tokens")
    return section("What a token of context takes", f'<div class="plots">{figure}</div>{table}')


def _training() -> str:
    found = figures.family_training(machine(TRAINED_ON))
    points = [(each.model, each.total / 1e9, float(each.usd_per_trillion) / 1e3) for each in found]
    rows = [
        (
            each.model,
            f"{each.total / 1e9:,.1f}",
            f"{each.active / 1e9:,.1f}",
            str(each.layout),
            f"{each.step.mfu:.1%}",
            f"{each.step.device_hours(1e12) / 1e3:,.0f}",
            f"{each.usd_per_trillion / 1000:,.0f}",
        )
        for each in found
    ]
    header = ("", "billion weights", "active", "layout", "MFU", "thousand device-hours", "thousand $")
    summary = ", ".join(f"{name} {usd:,.0f}" for name, _, usd in points)
    caption = f"A trillion tokens on {figures.TRAINING_DEVICES:,} devices of {TRAINED_ON}, at the catalogue's rent."
    draw = plots.dots(points, "billion weights", "thousand $ for a trillion tokens")
    figure = drawing("training", f"thousand dollars for a trillion tokens: {summary}", draw, caption, 4.2)
    note = (
        "<p>All in bfloat16 with a zero-bubble schedule; DeepSeek trained V3 in fp8 with DualPipe. With the recipes "
        "that were published, V2 and V3 are predicted to take a third less time than was reported.</p>"
    )
    return section("Training", f'<div class="plots">{figure}</div>{note}{grid(header, rows, 6)}')


def _evidence() -> str:
    rows = []
    for each in evidence():
        numbers = (f"{value:,.0f}" if value >= 1000 else f"{value:.4g}" for value in (each.predicted, each.measured))
        assumed = f"; assumed: {each.assumption}" if each.assumption else ""
        origin = f"{each.unit}; {each.machine}; {each.origin} ({each.date}){assumed}"
        inside = "" if each.within is None else "yes" if each.within else "no"
        rows.append((each.name, *numbers, f"{each.factor:.2f}", inside, origin))
    header = ("", "predicted", "measured", "factor", "in interval", "unit, source, what was assumed")
    return section("Predicted against measured", grid(header, rows, 3))


def _interval(answers: Mapping[str, Plan]) -> str:
    lines: list[str] = []
    for name, each in answers.items():
        full = each.full
        low, high = full.low / full.tokens_per_s, full.high / full.tokens_per_s
        reasons = dict.fromkeys(each.point.prefill.extrapolated + full.extrapolated)
        beyond = "; ".join(reasons) or "nothing"
        expected = f"rates are expected within {low:.2f} and {high:.2f} times the prediction"
        lines.append(f"<p><strong>{escape(name)}</strong>: {expected}. Extrapolated: {escape(beyond)}.</p>")
    return section("How far to trust it", "".join(lines))


def _sources(machines: Mapping[str, Machine]) -> str:
    tables = []
    for name, each in machines.items():
        rows = [(what, f"{figure.value:.5g}", figure.date, figure.source) for what, figure in _figures(each)]
        if each.usd_per_hour is not None:
            rent: Rent = each.usd_per_hour
            rows.append(("usd_per_hour", str(rent.amount), rent.date, rent.source))
        tables.append(grid(("", "value", "date", "source"), rows, 1, f"{name}: {each.description}"))
    return section("Sources of the hardware's figures", "".join(tables))


def _figures(machine: Machine) -> list[tuple[str, Figure]]:
    found = [
        (field.name, value) for field in fields(machine) if isinstance(value := getattr(machine, field.name), Figure)
    ]
    found += [(f"flops_per_s, {precision}", peak) for precision, peak in machine.flops_per_s.items()]
    shares = machine.efficiency
    return found + [(f"efficiency, {field.name}", getattr(shares, field.name)) for field in fields(shares)]


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], right: int = 0) -> str:
    return section(title, grid(header, rows, right))
