"""The grid of a needle test as one HTML file."""

from collections.abc import Mapping, Sequence
from typing import Any

from tapwater.cli.report_parts import drawing, grid, page, section
from tapwater.cli.report_plots import Draw


def needle_report(facts: Mapping[str, Any]) -> str:
    """The page; `facts` as the verb writes them."""
    lengths, depths = facts["lengths"], facts["depths"]
    shares = {(each["length"], each["depth"]): each["exact"] for each in facts["cells"]}
    rows = [[shares[length, depth] for length in lengths] for depth in depths]
    total = sum(shares.values()) / len(shares)
    words = f"exact answers by length and depth: {total:.0%} of all"
    height = max(2.6, 1.2 + 0.4 * len(depths))
    caption = f"Share of exact answers; {facts['trials']} prompts a cell, greedy."
    drawn = drawing("needle", words, cells(rows, lengths, depths), caption, height)
    table = grid(
        ("depth", *(f"{length:,} tokens" for length in lengths)),
        [(f"{depth:.0%}", *(f"{share:.0%}" for share in row)) for depth, row in zip(depths, rows, strict=True)],
        len(lengths),
        "Share of exact answers",
    )
    missed = [
        (f"{each['length']:,}", f"{each['depth']:.0%}", trial["key"], trial["answer"].strip()[:80])
        for each in facts["cells"]
        for trial in each["trials"]
        if not trial["exact"]
    ]
    asked = [("needle", facts["needle"]), ("question", facts["question"]), ("form", facts["form"])]
    asked += [
        ("haystack", f"{facts['haystack']}, {facts['haystack_chars']:,} characters"),
        ("seed", str(facts["seed"])),
    ]
    parts = [
        section("Found", f'<div class="plots">{drawn}</div>{table}'),
        section("What was asked", grid(("", ""), asked, 0)),
    ]
    if missed:
        parts.append(section("Missed", grid(("length", "depth", "number", "answer"), missed, 2)))
    said = f"Computed by {facts['computed_by']}; lengths are of prompt and answer together."
    return page(facts["model"], "needle in a haystack", words, said, parts)


def cells(rows: Sequence[Sequence[float]], across: Sequence[float], down: Sequence[float]) -> Draw:
    """A heat map of shares, each with its number."""

    def draw(axes: Any) -> None:
        axes.imshow(rows, aspect="auto", interpolation="nearest", cmap="viridis", vmin=0.0, vmax=1.0)
        for row, values in enumerate(rows):
            for column, value in enumerate(values):
                colour = "#000000" if value > 0.6 else "#ffffff"
                axes.text(column, row, f"{value:.0%}", ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(across)), [f"{each:,}" for each in across])
        axes.set_yticks(range(len(down)), [f"{each:.0%}" for each in down])
        axes.tick_params(length=0)
        axes.set_xlabel("tokens")
        axes.set_ylabel("depth")

    return draw
