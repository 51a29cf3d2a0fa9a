"""The page about a training run."""

import json
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tapwater.cli.train_report import write_training_report
from tapwater.errors import TrainingError
from tapwater.train.metrics import Evaluation, Filled, MetricsLog, StepMetrics

FIRST = StepMetrics(
    step=1, loss=5.25, ce=5.0, expert_loss=0.003, device_loss=0.0, communication_loss=0.0, mtp_loss=None, lr=1e-4,
    grad_norm=2.0, sequences=8, tokens=4096, tokens_per_s=900.0, mfu=0.4, seconds=4.5, cost_usd=Decimal("0.000123"),
    load_LE=((3, 1, 0, 4), (2, 2, 2, 2)),
)  # fmt: skip


BEFORE = "line 1\nline 2\nline 3\n    line 4\n"


def write(run: Path, steps: int, first: StepMetrics = FIRST) -> None:
    with MetricsLog(run, 0) as log:
        for step in range(1, steps + 1):
            log.step(replace(first, step=step, tokens=4096 * step, loss=5 / step, cost_usd=Decimal(step) / 1000))
            if step % 20 == 0:
                evaluation = Evaluation(step, 4096 * step, 2.5, {"web<script>": 2.0, "code": 3.0}, 0.25, 0.75)
                log.evaluation(evaluation, [Filled(BEFORE, f"    b = {step}", "\nend\n", "<b>", "    b\n    c")])


class Whole(HTMLParser):
    """Every element but void ones is closed in order, and nothing is fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            assert name not in ("src", "onload")
            assert not (name.endswith("href") and value and not value.startswith(("#", "data:image/png")))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_tells_losses_experts_baselines_and_cost(tmp_path: Path) -> None:
    run, corpus = tmp_path / "first run", tmp_path / "corpus"
    corpus.mkdir()
    baseline = {"source": "code", "method": "zstd", "bits_per_byte": 3.5, "num_bytes": 9, "detail": ""}
    (corpus / "baselines.json").write_text(json.dumps([baseline]))
    write(run, 60)
    text = write_training_report(run, corpus).read_text()
    Whole(text)
    for part in ("first run", "60 steps, 245,760 tokens", "$0.0600", "$0.2441", "infills exact", "25.0%", "+0.500",
                 "infills exact, suffix first", "75.0%",
                 "minimised from 5 to 0.08333", "web&lt;script&gt;", "load of each expert of layer 0", "at most 2.00",
                 "Dead at the end: 1.", "data:image/png",
                 "<td>    b = 60</td><td>end</td><td>&lt;b&gt;</td>", "line 2\nline 3\n    line 4</th>"):  # fmt: skip
        assert part in text, part
    assert "line 1" not in text and "b = 40" not in text
    assert "tokens ahead" not in text and "devices from" not in text


def test_the_cost_is_of_all_the_time_a_run_took(tmp_path: Path) -> None:
    write(tmp_path, 2)
    (tmp_path / "spent.json").write_text('{"elapsed_s": 7200.0, "cost_usd": "0.5"}')
    text = write_training_report(tmp_path, None).read_text()
    for part in ("hours of steps", "0.0025", "hours in all", "$0.5000", "$61.0352"):
        assert part in text, part
    assert "$0.0020" not in text


def test_a_short_dense_run_has_a_page_too(tmp_path: Path) -> None:
    write(tmp_path, 1, replace(FIRST, load_LE=(), mfu=None))
    text = write_training_report(tmp_path, None).read_text()
    Whole(text)
    assert "A dense model" in text and "Nothing was evaluated" in text
    assert "Infills" not in text


def test_a_run_without_a_step_is_refused(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0), pytest.raises(TrainingError, match="no step is finished"):
        write_training_report(tmp_path, None)
