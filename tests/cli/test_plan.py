"""`plan` answers, compares, refuses and starts without torch."""

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwater.cli import main
from tapwater.cli.plan_options import Question, changed, numbers_of
from tapwater.cli.plan_sweep import write_csv
from tapwater.config import preset
from tapwater.cost.formats import Formats
from tapwater.cost.hardware import machine, machines
from tapwater.cost.pricing import read_sheet
from tapwater.cost.sweep import SweepPoint, sweep
from tapwater.errors import ConfigError

SERVE = ("serve", "deepseek-v2", "--machine", "h800")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPWATER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")


def plan(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as exited:
        main(["plan", *arguments])
    out, err = capsys.readouterr()
    assert int(exited.value.code or 0) == code, err
    return err if code else out


def test_serve_shows_the_plan_and_what_was_assumed(capsys: pytest.CaptureFixture[str]) -> None:
    out = plan(capsys, *SERVE, "--requests-per-s", "500")
    said = ("assumed: weights in fp8, cache in bfloat16, 7.2 yuan", "dp8 ep8", "extrapolated: rates as published")
    for each in (*said, "time to first token", "routed", "$ per million tokens", "units, "):
        assert each in out, each
    facts = json.loads(plan(capsys, *SERVE, "--json"))
    assert facts["memory"]["fits"] and facts["output_tokens_per_s_low"] < facts["output_tokens_per_s"]
    assert isinstance(facts["usd_per_million"]["output"], str)  # money is never a float
    assert float(facts["cny_per_million"]["output"]) == pytest.approx(
        7.2 * float(facts["usd_per_million"]["output"]), 1e-4
    )


def test_what_if(capsys: pytest.CaptureFixture[str]) -> None:
    out = plan(capsys, *SERVE, "--json", "--compare", "cache=6bit", "--compare", "hit_share=0.56")
    facts = json.loads(out)
    assert list(facts["compared"]) == ["cache=6bit", "hit_share=0.56"]
    for each in facts["compared"].values():
        assert each["requests_per_s"] > facts["requests_per_s"]
    assert "did you mean 'cache'" in plan(capsys, *SERVE, "--compare", "cach=6bit", code=1)
    assert "is no float for hit_share" in plan(capsys, *SERVE, "--compare", "hit_share=much", code=1)


def test_what_cannot_be_is_shown_beside_what_can(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = (*SERVE, "--compare", "machine=rtx-4090", "--compare", "cache=6bit")
    facts = json.loads(plan(capsys, *asked, "--json"))
    assert list(facts["compared"]) == ["machine=rtx-4090", "cache=6bit"]
    assert "no layout on up to 1 x rtx-4090 works" in facts["compared"]["machine=rtx-4090"]["cannot"]
    assert facts["compared"]["cache=6bit"]["requests_per_s"] > facts["requests_per_s"]
    assert "machine=rtx-4090: cannot: no layout on up to 1 x rtx-4090 works" in plan(capsys, *asked)
    # what no machine makes right is a mistake, and so is a base that has no plan
    assert "--compare 'utilisation=7': utilisation is" in plan(capsys, *SERVE, "--compare", "utilisation=7", code=1)
    assert "--compare 'machine=h80': " in plan(capsys, *SERVE, "--compare", "machine=h80", code=1)
    base = ("serve", "deepseek-v2", "--machine", "rtx-4090", "--compare", "machine=h800")
    assert "no layout on up to 1 x rtx-4090 works" in plan(capsys, *base, code=1)
    assert "--compare 'cache=q8' is there twice" in plan(capsys, *SERVE, *("--compare", "cache=q8") * 2, code=1)


def test_a_change_is_strict() -> None:
    question = Question(preset("tiny"), "h800", 10, 5)
    assert changed(question, "machine=h100,max_nodes=2").max_nodes == 2
    for text, said in (
        ("cache", "write cache=VALUE"),
        ("cache=q8,cache=q6", "there twice"),
        ("config=x", "nothing named"),
    ):
        with pytest.raises(ConfigError, match=said):
            changed(question, text)


def test_all_machines_cheapest_first(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(plan(capsys, "serve", "deepseek-v2-lite", "--json"))
    names = [each["machine"] for each in found["machines"]]
    assert sorted([*names, *found["cannot"]]) == sorted(machines())
    costs = [each["usd_per_million"] for each in found["machines"]]
    priced = [each for each in costs if each is not None]
    assert costs[: len(priced)] == priced  # those without a rent come last
    request = [1000 * float(each["input_miss"]) + 500 * float(each["output"]) for each in priced]
    assert request == sorted(request)
    assert "--compare needs --machine" in plan(capsys, "serve", "deepseek-v2", "--compare", "cache=q8", code=1)
    nowhere = ("serve", "deepseek-v3", "--weights", "float32")
    assert "try more with --max-nodes" in plan(capsys, *nowhere, code=1)
    assert "try more with --max-nodes" in plan(capsys, *nowhere, "--json", code=1)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--prompt-tokens", "-5", "prompt_tokens must be at least 1"),
        ("--utilisation", "7", "utilisation is a share"),
        ("--max-nodes", "0", "max_nodes must be from 1"),
        ("--cache", "fp9", "cache format"),
        ("--layout", "dp3 ep2", "ep 2 does not divide"),
        ("--layout", "tp7", "tp 7 does not divide"),
    ],
)
def test_a_mistake_is_not_every_machines_fault(
    capsys: pytest.CaptureFixture[str], option: str, value: str, said: str
) -> None:
    assert said in plan(capsys, "serve", "deepseek-v2", option, value, code=1)
    assert said in plan(capsys, "serve", "deepseek-v2", option, value, "--json", code=1)


def test_a_layout_and_the_nodes_allowed(capsys: pytest.CaptureFixture[str]) -> None:
    asked = (*SERVE, "--layout", "dp16 ep16")
    assert json.loads(plan(capsys, *asked, "--json"))["nodes"] == 2
    assert json.loads(plan(capsys, *asked, "--max-nodes", "2", "--json"))["nodes"] == 2
    said = "layout dp16 ep16 takes 2 nodes of h800, --max-nodes allows 1"
    assert said in plan(capsys, *asked, "--max-nodes", "1", code=1)
    units = ("--prefill-layout", "dp8 ep8", "--decode-layout", "dp16 ep16", "--max-nodes", "1")
    assert said in plan(capsys, *SERVE, *units, code=1)


def test_rent_is_taken_and_a_sheet_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    half = json.loads(plan(capsys, *SERVE, "--json", "--usd-per-hour", "8"))
    full = json.loads(plan(capsys, *SERVE, "--json", "--sheet", str(tmp_path / "sheet.json")))
    assert 2 * float(half["usd_per_million"]["output"]) == pytest.approx(float(full["usd_per_million"]["output"]), 1e-4)
    sheet = read_sheet(tmp_path / "sheet.json")
    assert sheet.basis.kind == "predicted" and "h800" in sheet.machine
    assert float(sheet.costs().output) == pytest.approx(float(full["usd_per_million"]["output"]), 1e-4)


def test_no_file_is_destroyed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files are looked at before any work, and the report, which can be written again, comes first."""
    written: list[str] = []
    monkeypatch.setattr("tapwater.cli.report.write_report", lambda path, *rest: written.append(path.name))
    monkeypatch.setattr("tapwater.cost.sheet_file.write_sheet", lambda sheet, path: written.append(path.name))
    notes, page, sheet = tmp_path / "notes.txt", tmp_path / "page.html", tmp_path / "sheet.json"
    notes.write_text("mine")
    page.write_text("\n<!DOCTYPE HTML><title>old</title>")
    for html, made, said in (
        (notes, sheet, "notes.txt is there already and is no HTML page"),
        (tmp_path, sheet, "is no HTML page"),
        (page, notes, "--sheet: "),
        (page, tmp_path / "no" / "sheet.json", "there is no directory"),
    ):
        assert said in plan(capsys, *SERVE, "--html", str(html), "--sheet", str(made), code=1)
    assert not written
    plan(capsys, *SERVE, "--html", str(page), "--sheet", str(sheet))
    plan(capsys, *SERVE, "--html", str(tmp_path / "new.html"))
    assert written == ["page.html", "sheet.json", "new.html"]


def test_separate_units(capsys: pytest.CaptureFixture[str]) -> None:
    units = ("--prefill-layout", "dp32 ep32", "--decode-layout", "dp144 ep144", "--requests-per-s", "1000")
    facts = json.loads(plan(capsys, "serve", "deepseek-v3", "--machine", "h800", *units, "--json"))
    assert (facts["prefill"]["nodes"], facts["decode"]["nodes"]) == (4, 18)
    assert facts["demand"]["decode_units"] == -(-1000 // facts["decode"]["requests_per_s"])
    assert "need both" in plan(capsys, *SERVE, "--prefill-layout", "dp8 ep8", code=1)


TRAIN = ("train", "deepseek-v2", "--tokens", "8.1e12", "--machine", "h800", "--layout")


def test_train(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--schedule", "zb1p", "--recomputation", "selective", "--overlap", "shared_experts")
    facts = json.loads(plan(capsys, *TRAIN, "dp128 ep8 pp16", *options, "--json"))
    assert sum(facts["step_by_part_s"].values()) == pytest.approx(facts["step_s"])
    assert facts["device_hours"] == pytest.approx(facts["days"] * 24 * 2048)
    assert float(facts["usd"]) == pytest.approx(2 * facts["device_hours"], rel=1e-6)
    assert "MFU" in plan(capsys, *TRAIN, "dp128 ep8 pp16", *options)
    rented = (*TRAIN, "dp128 ep8 pp16", *options, "--usd-per-device-hour")
    assert json.loads(plan(capsys, *rented, "2.5", "--json"))["usd_per_device_hour"] == "2.5"
    for rent in ("-1", "10000"):
        assert "--usd-per-device-hour must be" in plan(capsys, *rented, rent, code=1)
    for tokens in ("1e300", "0.5", "nan"):
        asked = [tokens if each == "8.1e12" else each for each in TRAIN]
        assert "--tokens must be from 1 to 1e18" in plan(capsys, *asked, "dp128 ep8 pp16", *options, code=1)
    said = plan(capsys, *TRAIN, "dp8", code=1)
    assert "it does not fit: a device would hold 1870.0 GB (weights 471.5" in said and "72.0 are usable" in said


def test_sweep_to_a_table_and_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = ("sweep", "deepseek-v2", "--machine", "h800", "--batch", "1,4..8,100000", "--context", "1024")
    assert "does not fit" in plan(capsys, *asked)
    plan(capsys, *asked, "--out", str(tmp_path / "points.csv"))
    with (tmp_path / "points.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["batch"] for row in rows] == ["1", "4", "8", "100000"]
    assert rows[-1]["fits"] == "False" and rows[-1]["tokens_per_s"] == "" and float(rows[0]["tokens_per_s"]) > 0
    assert "is there already" in plan(capsys, *asked, "--out", str(tmp_path / "points.csv"), code=1)
    for batch, said in (("8..4", "must rise"), ("x", "none of 8"), ("4,4", "there twice"), ("0", "at least 1")):
        assert said in plan(capsys, "sweep", "deepseek-v2", "--machine", "h800", "--batch", batch, code=1)
    assert "either --out" in plan(capsys, *asked, "--out", str(tmp_path / "more.csv"), "--json", code=1)
    assert not (tmp_path / "more.csv").exists()
    dense = ("sweep", "deepseek-67b", "--machine", "h800", "--batch", "1", "--json")
    assert [each["context"] for each in json.loads(plan(capsys, *dense))] == [1024, 2048, 4096]
    typed = plan(capsys, *dense, "--context", "1024..131072", code=1)
    assert "the model's 4096, got 8192" in typed
    assert numbers_of("100..400+150,1..4", "--batch") == [1, 2, 4, 100, 250, 400]


def test_ctrl_c_keeps_the_points_there_are(tmp_path: Path) -> None:
    def stopped() -> Iterator[SweepPoint]:
        points = sweep(preset("deepseek-v2"), machine("h800"), Formats("fp8", "bfloat16"), [1, 2, 4], [1024])
        yield next(points)
        yield next(points)
        raise KeyboardInterrupt

    assert write_csv(stopped(), 3, tmp_path / "points.csv", lambda done, total: None) == 2
    assert len((tmp_path / "points.csv").read_text().splitlines()) == 3


def test_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    out = plan(capsys, "evidence")
    assert "55,400" in out and "assumed: the best layout of a node, 2,048 tokens" in out
    assert {row["name"] for row in json.loads(plan(capsys, "evidence", "--json"))} >= {"DeepSeek-V2, generation"}


def test_wrong_input_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for option, value, said in (
        ("--layout", "dp8 xp2", "no axis 'xp'"),
        ("--weights", "fp9", "did you mean 'fp8'"),
        ("--hit-share", "56", "56.3% is 0.563"),
        ("--usd-per-hour", "-1", "no plausible rent"),
        ("--cny-per-usd", "seven", "is not a decimal number"),
        ("--prompt-tokens", "200000", "the model's context is 163,840"),
        ("--utilisation", "70", "70% is 0.7"),
        ("--utilisation", "1e-30", "from 0.001"),
        ("--requests-per-s", "1e10", "at most a billion"),
        ("--requests-per-s", "nan", "at most a billion"),
        ("--cny-per-usd", "1001", "at most 1000"),
        ("--cny-per-usd", "0", "must be above 0"),
    ):
        assert said in plan(capsys, *SERVE, option, value, code=1), option
    assert "did you mean 'h800'" in plan(capsys, "serve", "deepseek-v2", "--machine", "h80", code=1)
    assert "did you mean 'deepseek-v2'" in plan(capsys, "serve", "deepsek-v2", "--machine", "h800", code=1)


def test_plan_loads_neither_torch_nor_matplotlib() -> None:
    script = (
        "import sys, contextlib, tapwater.cli\n"
        "with contextlib.suppress(SystemExit): tapwater.cli.main("
        "['plan', 'serve', 'deepseek-v2', '--machine', 'h800'])\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'fastapi', 'huggingface_hub', 'rich.console', 'tapwater.cli.serve'}\n"
        "print(heavy & set(sys.modules))"
    )
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=paths)
    assert done.stdout.endswith("set()\n"), done.stdout


TARGET = ("target", "deepseek-v2-lite", "--machine", "xeon-2vcpu")


def test_target_says_which_load_makes_a_price_true(capsys: pytest.CaptureFixture[str]) -> None:
    out = plan(capsys, *TARGET, "--usd-per-hour", "0.01", "--cny-per-million", "1")
    assert "(¥1.00) per million output tokens at 20.0 tokens/s" in out  # 0.01 x 7.2 yuan over 1 yuan, per second
    assert "true from" in out and "requests at once" in out
    facts = json.loads(plan(capsys, *TARGET, "--usd-per-hour", "0.01", "--cny-per-million", "1", "--json"))
    assert facts["needed_tokens_per_s"] == pytest.approx(20)
    assert 1 < facts["batch"] < facts["largest_batch"]
    assert 0 < facts["utilisation"] < 1


def test_a_price_that_no_load_makes_true_is_said_to_be_so(capsys: pytest.CaptureFixture[str]) -> None:
    out = plan(capsys, *TARGET, "--usd-per-hour", "1", "--usd-per-million", "0.1")
    assert "no load makes it true; it would be if the hour cost $0.0" in out


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "give either --usd-per-million or --cny-per-million"),
        (("--usd-per-million", "1", "--cny-per-million", "7"), "give either --usd-per-million or --cny-per-million"),
        (("--usd-per-million", "1"), "xeon-2vcpu has no rent; say --usd-per-hour"),
        (("--usd-per-million", "0", "--usd-per-hour", "1"), "per_million must be an amount of money"),
        (("--usd-per-million", "1", "--usd-per-hour", "0"), "hour must be an amount of money"),
        (("--usd-per-million", "1", "--usd-per-hour", "1", "--weights", "bf16"), "does not fit xeon-2vcpu"),
        (("--usd-per-million", "1", "--usd-per-hour", "1", "--layout", "dp2"), "measured alone"),
    ],
)
def test_target_refuses(more: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in " ".join(plan(capsys, *TARGET, *more, code=1).split())
