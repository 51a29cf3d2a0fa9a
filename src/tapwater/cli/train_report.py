"""A training run as one HTML file that needs nothing else: what it learned, how its experts fared, what it cost."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from tapwater.cli import train_plots as plots
from tapwater.cli.report_parts import drawing, grid, page, section
from tapwater.data.replacing import replace_text
from tapwater.errors import TrainingError
from tapwater.train import health
from tapwater.train.clock import Spent, read_spent
from tapwater.train.metrics import read_evaluations, read_steps

POINTS = 600  # of a curve; more are averaged
HEATED_LAYERS = 12  # a heat map each; of more layers those with the most uneven load
DEAD_SHOWN = 40
LINES_SHOWN = 3  # on either side of a hole


def write_training_report(run: Path, corpus: Path | None) -> Path:
    """Write `report.html` into a run's directory and return its path; `corpus` holds baselines.json, if there is one.

    Raises TrainingError when the run has no step yet or its spent.json is damaged, DataError for damaged baselines or
    a page that cannot be written.
    """
    steps, evaluations = read_steps(run), read_evaluations(run)
    if not steps:
        raise TrainingError(f"{run}: no step is finished yet, so there is nothing to report")
    baselines = health.read_baselines(corpus) if corpus is not None else {}
    path = run / "report.html"
    text = training_report(run.resolve().name, steps, evaluations, baselines, read_spent(run))
    replace_text(path, text)
    return path


def training_report(
    name: str,
    steps: Sequence[health.Line],
    evaluations: Sequence[health.Line],
    baselines: Mapping[str, Mapping[str, float]],
    spent: Spent | None,
) -> str:
    """The page; without `spent` its cost is that of the last step, which knows of nothing after it."""
    last = steps[-1]
    return page(
        name,
        "training",
        f"{last['step']:,} steps, {last['tokens']:,} tokens",
        "Losses are in nats per token, over the global batch; long curves are averaged.",
        (
            _summary(steps, evaluations, spent),
            _losses(steps),
            _heldout(evaluations, baselines),
            _infills(evaluations[-1].get("infills", ()) if evaluations else ()),
            _routing(steps),
            _speed(steps),
        ),
    )


def _summary(steps: Sequence[health.Line], evaluations: Sequence[health.Line], spent: Spent | None) -> str:
    last = steps[-1]
    seconds = sum(value for _, value in health.curve(steps, "seconds"))
    rows = [("loss of the last step", _number(last["loss"], ".4f"))]
    if evaluations:
        rows.append(("held-out bits per byte", _number(evaluations[-1]["bits_per_byte"], ".4f")))
        for name, key in (("infills exact", "fim_exact"), ("infills exact, suffix first", "fim_exact_spm")):
            if evaluations[-1].get(key) is not None:
                rows.append((name, f"{evaluations[-1][key]:.1%}"))
    rows += [("tokens", f"{last['tokens']:,}"), ("hours of steps", f"{seconds / 3600:.3g}")]
    if spent is not None:
        rows.append(("hours in all", f"{spent.elapsed_s / 3600:.3g}"))
    cost = last.get("cost_usd") if spent is None else spent.cost_usd
    if cost is None:
        rows.append(("cost", "no rent known"))
    else:
        million = Decimal(cost) / Decimal(last["tokens"]) * 1_000_000
        rows += [("cost", f"${Decimal(cost):.4f}"), ("cost of a million tokens", f"${million:.4f}")]
    return section("The run", grid(("", "value"), rows, 1))


def _losses(steps: Sequence[health.Line]) -> str:
    losses = _series(steps, {"loss": "minimised", "ce": "next token", "mtp_loss": "tokens ahead"})
    balance = {"expert_loss": "experts", "device_loss": "devices", "communication_loss": "communication"}
    drawn = [_plot("loss", losses, "nats per token", "Cross-entropy, and what is minimised with it.")]
    parts = {label: points for label, points in _series(steps, balance).items() if any(value for _, value in points)}
    drawn.append(_plot("balance", parts, "balance loss", "With their weights, summed over layers."))
    optimizer = _series(steps, {"grad_norm": "gradient norm before clipping"})
    drawn.append(_plot("norm", optimizer, "gradient norm", "Before clipping."))
    drawn.append(_plot("rate", _series(steps, {"lr": "lr"}), "learning rate", "As the schedule set it."))
    return section("Loss", _plots(drawn))


def _heldout(evaluations: Sequence[health.Line], baselines: Mapping[str, Mapping[str, float]]) -> str:
    if not evaluations:
        return section("Held-out text", "<p>Nothing was evaluated.</p>")
    names = list(evaluations[-1]["sources"])
    flat = [{"step": each["step"], **each["sources"]} for each in evaluations]
    named = {"all": health.curve(evaluations, "bits_per_byte"), **{name: health.curve(flat, name) for name in names}}
    body = _plots([_plot("bits", named, "bits per byte", "Of text that no step has seen; less is better.")])
    found = health.gaps(evaluations[-1]["sources"], baselines)
    rows = [
        (each.source, each.baseline, f"{each.model_bits:.3f}", f"{each.baseline_bits:.3f}", f"{each.gap:+.3f}")
        for each in found
    ]
    header = ("", "simple model", "this model", "simple model's", "better by")
    compared = "Bits per byte at the last evaluation, against simple models on the same held-out text"
    body += grid(header, rows, 4, compared) if rows else "<p>The corpus has no baselines of these sources.</p>"
    return section("Held-out text", body)


def _infills(filled: Sequence[Mapping[str, str | None]]) -> str:
    """What the model wrote at the last evaluation; nothing where none were tried."""
    if not filled:
        return ""
    header = ["before the hole", "stood there", "after it", "the model wrote"]
    rows = [[_near(each["before"], -1), each["wanted"], _near(each["after"], 1), each["wrote"]] for each in filled]
    if filled[0]["wrote_spm"] is not None:
        header.append("with the suffix first")
        for row, each in zip(rows, filled, strict=True):
            row.append(each["wrote_spm"])
    shown = [[(cell or "").strip("\n") for cell in row] for row in rows]
    named = f"Of the last evaluation, the likeliest token each time; the {LINES_SHOWN} nearest lines are shown"
    return section("Infills", f'<div class="code">{grid(header, shown, 0, named)}</div>')


def _near(text: str | None, side: int) -> str:
    """The lines of a text that are nearest to the hole before (-1) or after it (1)."""
    lines = (text or "").strip("\n").split("\n")
    return "\n".join(lines[:LINES_SHOWN] if side > 0 else lines[-LINES_SHOWN:])


def _routing(steps: Sequence[health.Line]) -> str:
    uneven = health.imbalance(steps)
    if not uneven:
        return section("Experts", "<p>A dense model: there are none.</p>")
    layers = sorted(uneven, key=lambda layer: -sum(value for _, value in uneven[layer]))[:HEATED_LAYERS]
    named = {f"layer {layer}": health.thinned(uneven[layer], POINTS) for layer in sorted(layers)}
    drawn = [_plot("uneven", named, "busiest expert / mean", "1 is even; MoE layers from 0.", level=1.0)]
    windows = health.load_windows(steps)
    for layer in sorted(layers) if windows else ():
        rows = health.relative_load(windows, layer)
        most = max(max(row) for row in rows)
        alternative = f"load of each expert of layer {layer} over time: at most {most:.2f} times the mean"
        picture = plots.heat(rows, windows[0].step - windows[0].steps + 1, windows[-1].step)
        drawn.append(drawing(f"heat{layer}", alternative, picture, f"MoE layer {layer}: load of each expert."))
    left_out = len(uneven) - len(layers)
    note = f"<p>{left_out} layers with a more even load are not drawn.</p>" if left_out else ""
    return section("Experts", _plots(drawn) + note + _dead(windows))


def _dead(windows: Sequence[health.LoadWindow]) -> str:
    if not windows:
        return "<p>The run was too short for sums of loads, so dead experts cannot be told.</p>"
    dead = health.dead_experts(windows)
    if not dead:
        return f"<p>No expert was without a token over {max(each.steps for each in windows)} steps in a row.</p>"
    rows = [(str(each.layer), str(each.expert), str(each.first_step), str(each.last_step)) for each in dead]
    now = sum(each.last_step == windows[-1].step for each in dead)
    listed = f" The first {DEAD_SHOWN} of {len(dead)} are listed." if len(dead) > DEAD_SHOWN else ""
    note = f"<p>Dead at the end: {now}.{listed}</p>"
    return note + grid(("layer", "expert", "from step", "to step"), rows[:DEAD_SHOWN], 3, "Experts without any token")


def _speed(steps: Sequence[health.Line]) -> str:
    speed = _plot("speed", _series(steps, {"tokens_per_s": "speed"}), "tokens per second", "Of whole steps.")
    mfu = _plot("mfu", _series(steps, {"mfu": "MFU"}), "MFU", "Share of the products' peak that was measured here.")
    cost = _plot("cost", _series(steps, {"cost_usd": "cost"}), "$", "Of the run until then, all its time.")
    return section("Speed and cost", _plots([speed, mfu, cost]))


def _series(steps: Sequence[health.Line], names: Mapping[str, str]) -> dict[str, list[health.Point]]:
    found = {label: health.thinned(health.curve(steps, name), POINTS) for name, label in names.items()}
    return {label: points for label, points in found.items() if points}


def _plot(name: str, series: Mapping[str, Any], y: str, caption: str, level: float | None = None) -> str:
    """A figure, or nothing where nothing was measured."""
    known = {label: points for label, points in series.items() if points}
    if not known:
        return ""
    ends = ", ".join(f"{label} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for label, points in known.items())
    return drawing(name, f"{y} over steps: {ends}", plots.curves(known, y, level), caption)


def _plots(drawn: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(drawn)}</div>'


def _number(value: float | None, form: str) -> str:
    return "not a finite number" if value is None else format(value, form)
