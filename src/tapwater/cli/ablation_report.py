"""The results of an ablation as results.json, table.md and report.html."""

import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

from tapwater.cli import ablation_plots as plots
from tapwater.cli.report_parts import drawing, grid, page, section
from tapwater.config.ablation import AblationConfig
from tapwater.train.ablation_plan import Plan
from tapwater.train.ablation_results import SMOOTHED_SHARE, SMOOTHED_STEPS, Result, Results, Spread
from tapwater.train.health import thinned

POINTS = 300  # of a curve
Rows = tuple[Sequence[str], Sequence[Sequence[str]]]  # header, rows


def write_ablation_report(directory: Path, ablation: AblationConfig, plan: Plan, results: Results) -> None:
    """Replace the three files in the ablation's directory."""
    text = json.dumps(facts(ablation, plan, results), indent=2, ensure_ascii=False, allow_nan=False)
    (directory / "results.json").write_text(text + "\n", encoding="utf-8")
    (directory / "table.md").write_text(table(ablation, plan, results), encoding="utf-8")
    (directory / "report.html").write_text(_page(directory, ablation, plan, results), encoding="utf-8")


def facts(ablation: AblationConfig, plan: Plan, results: Results) -> dict[str, Any]:
    """Everything but the curves, as plain JSON: null for what is not finite, money as text."""
    return {
        "tapwater": version("tapwater"),
        "equal": plan.equal,
        "amount": plan.amount,
        "unit": "training FLOPs" if plan.equal == "active_flops" else "seconds of steps",
        "precision": plan.precision,
        "corpus": plan.corpus,
        "seeds": ablation.budget.seeds,
        "smoothed_share": SMOOTHED_SHARE,
        "smoothed_steps": SMOOTHED_STEPS,
        "target_loss": results.target_loss,
        "unfinished": list(results.unfinished),
        "diverged": list(results.diverged),
        "variants": [_variant_facts(each) for each in results.results],
    }


def table(ablation: AblationConfig, plan: Plan, results: Results) -> str:
    """The tables in Markdown."""
    said = [_about(ablation, plan), *_notes(plan, results)]
    tables = [("Variants", _models(results)), ("What they learned", _learned(results)), ("Each seed", _seeds(results))]
    if len(results.results) > 1:
        tables.append((f"Less {results.results[0].name}, seed by seed", _differences(results)))
    parts = [f"## {title}\n\n{_markdown(*found)}" for title, found in tables]
    return "\n\n".join([" ".join(said), *parts]) + "\n"


def _page(directory: Path, ablation: AblationConfig, plan: Plan, results: Results) -> str:
    if not results.results:
        return page(directory.resolve().name, "ablation", _about(ablation, plan), " ".join(_notes(plan, results)), ())
    found = results.results
    number = 10
    sections = [
        section("Variants", grid(*_models(results), number)),
        section("What they learned", grid(*_learned(results), number)),
        section("Loss", f'<div class="plots">{"".join(_curves(found))}</div>'),
        section("Held-out text", f'<div class="plots">{_bits(found)}</div>'),
        section("Each seed", grid(*_seeds(results), number)),
    ]
    if len(found) > 1:
        sections.append(section(f"Less {found[0].name}, seed by seed", grid(*_differences(results), number)))
    said = " ".join(_notes(plan, results))
    return page(directory.resolve().name, "ablation", _about(ablation, plan), said, sections)


def _about(ablation: AblationConfig, plan: Plan) -> str:
    spent = f"{plan.amount:.3g} training FLOPs" if plan.equal == "active_flops" else f"{plan.amount:.0f} s of steps"
    return (
        f"Every run may spend {spent}; {ablation.budget.seeds} seeds of each variant, {plan.precision}, "
        f"corpus {plan.corpus[:12]}."
    )


def _notes(plan: Plan, results: Results) -> list[str]:
    notes = [
        "Figures are means over the finished seeds ± the standard deviation of a sample; intervals are Student's.",
        f"Losses are of the next token in nats, means of the last {SMOOTHED_SHARE:.0%} of steps, at least "
        f"{SMOOTHED_STEPS}.",
        "Active parameters leave out the input embedding, all leave out multi-token prediction; FLOPs have it.",
        "Cache is in bytes per token as bfloat16. Seconds and cost are those of steps, without evaluations.",
    ]
    if plan.equal == "wall_clock":
        notes.append("Of the budget: what whole steps were to take by the time of a step that was measured beforehand.")
    notes += [f"Diverged: {each}." for each in results.diverged]
    if results.unfinished:
        notes.append(f"Without a finished run: {', '.join(results.unfinished)}.")
    return notes


def _models(results: Results) -> Rows:
    header = ("variant", "parameters", "active", "MFLOP per token", "cache per token", "steps", "of the budget",
              "tokens", "tokens/s", "seconds", "cost")  # fmt: skip
    rows = [
        (each.name, f"{each.parameters:,}", f"{each.active_parameters:,}", f"{each.flops_per_token / 1e6:.2f}",
         f"{each.kv_bytes_per_token:,}", f"{each.steps:,}", f"{each.budget_share:.1%}", f"{each.tokens:,.0f}",
         _spread(each.tokens_per_s, ",.0f"), _spread(each.seconds, ",.1f"), _money(each.cost_usd))
        for each in results.results
    ]  # fmt: skip
    return header, rows


def _learned(results: Results) -> Rows:
    target = "no loss" if results.target_loss is None else f"{results.target_loss:.4f}"
    header = ("variant", "n", "loss", "held-out bits per byte", f"tokens to {target}", "seconds", "cost")
    rows = []
    for each in results.results:
        cells = ("not reached",) * 3
        if each.reached is not None:
            there = each.reached.tokens.n
            by = "" if there == each.loss.n else f" ({there} of {each.loss.n} seeds)"
            tokens, seconds = _spread(each.reached.tokens, ",.0f"), _spread(each.reached.seconds, ",.1f")
            cells = (tokens + by, seconds, _money(each.reached.cost_usd))
        rows.append(
            (each.name, str(each.loss.n), _spread(each.loss, ".4f"), _spread(each.bits_per_byte, ".4f"), *cells)
        )
    return header, rows


def _seeds(results: Results) -> Rows:
    numbers = sorted({seed for each in results.results for seed in each.loss.seeds})
    header = ("variant", *(f"{what}, seed {seed}" for what in ("loss", "bits per byte") for seed in numbers))
    rows = [
        (each.name, *(_number(spread.seeds.get(seed), ".4f") for spread in (each.loss, each.bits_per_byte)
                      for seed in numbers))
        for each in results.results
    ]  # fmt: skip
    return header, rows


def _differences(results: Results) -> Rows:
    """Of held-out text, the same for all; the last losses of training are of the text each run had come to."""
    first, *others = results.results
    header = ("variant", "n", "held-out bits per byte", "95% interval")
    rows = []
    for each in others:
        bits = each.bits_per_byte.minus(first.bits_per_byte)
        if bits is None:
            rows.append((each.name, "0", "no seed in common", "-"))
            continue
        ends = "-" if bits.interval is None else " to ".join(_number(end, "+.4f") for end in bits.interval)
        rows.append((each.name, str(bits.n), _spread(bits, "+.4f"), ends))
    return header, rows


def _curves(found: Sequence[Result]) -> list[str]:
    def plot(name: str, x: str, of: Callable[[Result], Any]) -> str:
        series = {}
        for each in found:
            points = [(float(a), float(b)) for a, b in zip(of(each), each.curve.loss, strict=True) if isfinite(b)]
            if points:
                series[each.name] = thinned(points, POINTS)
        if not series:
            return ""
        ends = ", ".join(f"{label} ends at {points[-1][1]:.4g}" for label, points in series.items())
        caption = "Mean over seeds, smoothed; only the later part."
        return drawing(name, f"loss over {x}: {ends}", plots.losses(series, x), caption)

    return [
        plot("tokens", "tokens", lambda each: each.curve.tokens),
        plot("flops", "training FLOPs", lambda each: each.curve.tokens * each.flops_per_token),
        plot("seconds", "seconds of steps", lambda each: each.curve.seconds),
    ]


def _bits(found: Sequence[Result]) -> str:
    values = {each.name: [bits for bits in each.bits_per_byte.seeds.values() if isfinite(bits)] for each in found}
    values = {name: bits for name, bits in values.items() if bits}
    if not values:
        return ""
    words = ", ".join(f"{each.name} {_spread(each.bits_per_byte, '.4f')}" for each in found)
    draw = plots.strips(values, "held-out bits per byte")
    height = max(2.0, 1.0 + 0.3 * len(values))
    return drawing("bits", f"held-out bits per byte: {words}", draw, "Every seed, and the mean as a line.", height)


def _variant_facts(each: Result) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name, value in vars(each).items():
        if name == "curve":
            continue
        if isinstance(value, Spread):
            value = _spread_facts(value)
        elif name == "sources":
            value = {source: _spread_facts(spread) for source, spread in each.sources.items()}
        elif name == "cost_usd":
            value = None if value is None else str(value)
        elif name == "reached" and each.reached is not None:
            cost = each.reached.cost_usd
            value = {"tokens": _spread_facts(each.reached.tokens), "seconds": _spread_facts(each.reached.seconds),
                     "cost_usd": None if cost is None else str(cost)}  # fmt: skip
        plain[name] = value
    return plain


def _spread_facts(spread: Spread) -> dict[str, Any]:
    seeds = {str(seed): _finite(value) for seed, value in spread.seeds.items()}
    return {"n": spread.n, "mean": _finite(spread.mean), "deviation": _finite(spread.deviation), "seeds": seeds}


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def _spread(spread: Spread, form: str) -> str:
    mean = _number(spread.mean, form)
    return mean if spread.deviation is None else f"{mean} ± {_number(spread.deviation, form.replace('+', ''))}"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form) if isfinite(value) else "not finite"


def _money(cost: Any) -> str:
    return "no rent known" if cost is None else f"${cost:.4f}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
