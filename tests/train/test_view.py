"""What a run shows of itself, drawn on recorded consoles."""

import io
from dataclasses import replace
from decimal import Decimal
from math import nan

from rich.console import Console

from tapwater.train.view import Progress, View, duration, line, panel, sparkline, strip

STEP = Progress(
    step=120,
    total_steps=1000,
    loss=4.56789,
    lr=2.4e-4,
    grad_norm=1.25,
    tokens=491_520,
    tokens_per_s=1234.5,
    elapsed_s=400,
    left_s=3725,
    mfu=0.345,
    bits_per_byte=1.9876,
    cost_usd=Decimal("0.012345"),
    total_usd=Decimal("0.1"),
    load_LE=((30, 10, 0, 40), (20, 20, 20, 20)),
)


def drawn(progress: Progress, losses: list[float]) -> str:
    console = Console(file=io.StringIO(), width=80, record=True)
    console.print(panel("tiny", progress, losses))
    return console.export_text()


def test_a_line_holds_what_one_asks_of_a_log() -> None:
    text = line(STEP)
    for part in ("step 120/1000", "loss 4.5679", "1.9876", "tokens/s 1,234", "MFU 34.5%", "$0.0123 of about $0.1000",
                 "left 1:02:05", "busiest expert 2.00x the mean"):  # fmt: skip
        assert part in text
    assert "\n" not in text
    tried = line(replace(STEP, fim_exact=0.25, fim_exact_spm=0.5))
    assert "infills exact 25.0%" in tried and "infills exact, suffix first 50.0%" in tried
    bare = line(replace(STEP, mfu=None, bits_per_byte=None, cost_usd=None, left_s=None, load_LE=()))
    assert "MFU" not in bare and "$" not in bare and "expert" not in bare


def test_the_panel_shows_facts_the_curve_and_each_layers_experts() -> None:
    text = drawn(STEP, [9.0, 7.0, 5.0])
    assert "step 120 of 1,000" in text and "█▅▁" in text
    rows = text.splitlines()
    assert any("▇▃·█" in row and "2.00" in row for row in rows)
    assert any("▅▅▅▅" in row and "1.00" in row for row in rows)
    assert any(row.startswith("│ loss ") and "4.5679" in row for row in rows)
    assert all(len(each) <= 80 for each in text.splitlines())


def test_of_many_layers_the_most_uneven_are_shown() -> None:
    loads = tuple((10, 10 + 2 * layer) for layer in range(20))
    text = drawn(replace(STEP, load_LE=loads), [1.0])
    assert "the 8 most uneven of 20 layers" in text
    assert "19" in text and "\n│ 3 " not in text


def test_a_sparkline_averages_what_does_not_fit_and_marks_what_is_no_number() -> None:
    assert sparkline([float(each) for each in range(8)], 8) == "▁▂▃▄▅▆▇█"
    assert len(sparkline([1.0] * 1000, 40)) == 40
    assert sparkline([1.0, nan, 2.0], 10) == "▁!█"
    assert sparkline([], 10) == ""


def test_a_cell_of_many_experts_shows_their_busiest_but_an_unused_one_alone_is_seen() -> None:
    assert strip([0, 0, 8, 8], 4).plain == "··██"
    assert strip([1] * 63 + [200], 32).plain[-1] == "█"


def test_elsewhere_than_on_a_terminal_lines_come_every_so_often() -> None:
    out = io.StringIO()
    with View(Console(file=out, width=80), "tiny", every=50) as view:
        for step in range(1, 102):
            view.show(replace(STEP, step=step, total_steps=101))
        view.note("checkpoint written to run/checkpoints/100 [not markup]")
    lines = out.getvalue().splitlines()
    assert [each.split("  ")[0] for each in lines[:4]] == ["step 1/101", "step 50/101", "step 100/101", "step 101/101"]
    assert lines[4] == "checkpoint written to run/checkpoints/100 [not markup]"
    assert len(lines) == 5


def test_on_a_terminal_the_panel_is_live() -> None:
    out = io.StringIO()
    with View(Console(file=out, width=80, force_terminal=True), "tiny", every=50) as view:
        view.show(STEP)
    assert "step 120 of 1,000" in out.getvalue()


def test_durations() -> None:
    assert [duration(each) for each in (5, 65, 3600, 360_000)] == ["0:05", "1:05", "1:00:00", "100:00:00"]
