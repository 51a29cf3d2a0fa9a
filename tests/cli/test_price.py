"""`price` from the shell: sheets, ratios, the published day and a reconciled ledger, as tables and as JSON."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sheets import V2_NODE
from tapwater.cli import main
from tapwater.cost.ledger import LedgerRow, ledger_line
from tapwater.cost.money import moment_of
from tapwater.cost.price import Usage, charge
from tapwater.cost.sheet_file import read_sheet, write_sheet

SHEET = {
    **{"--model": "deepseek-v2", "--machine": "8 x H800", "--measured": "DeepSeek-V2 report, section 3.2.3"},
    **{"--prefill": "100000", "--cached": "1000000", "--decode": "50000", "--utilisation": "1", "--margin": "0"},
    **{"--usd-per-hour": "16", "--rent-source": "DeepSeek-V3 report, table 1: $2 per H800-hour"},
    **{"--rent-date": "2024-12", "--cny-per-usd": "7.2", "--exchange-source": "an assumption of the tests"},
    **{"--exchange-date": "2024-05-06", "--created": "2024-05-06"},
}


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as exited:
        main(["price", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert not exited.value.code, err
    return out


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.raises(SystemExit) as exited:
        main(["price", *map(str, arguments)])
    assert exited.value.code == 1
    return " ".join(capsys.readouterr().err.split())


def options(**changes: str | None) -> list[str]:
    given = SHEET | {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
    return [word for name, value in given.items() if value is not None for word in (name, value)]


def test_a_sheet_from_options_is_the_one_from_python(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "sheet.json"
    shown = run(capsys, "sheet", *options(), "--out", path)
    assert V2_NODE.version in shown and "0.088889" in shown and "0.640000" in shown
    assert read_sheet(path) == V2_NODE
    assert run(capsys, "sheet", *options(), "--json") == path.read_text()
    assert "is there already and is another sheet" in refused(capsys, "sheet", *options(margin="0.1"), "--out", path)


def test_periods_and_energy(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = options(power_w="5600", usd_per_kwh="0.1", energy_source="meter")
    periods = ["--period", "off-peak fri-mon,wed 16:30-00:30 UTC 0.5", "--period", "peak tue 01:00-04:00 UTC 2"]
    data = json.loads(run(capsys, "sheet", *arguments, *periods, "--json"))
    assert [each["days"] for each in data["periods"]] == [["fri", "sat", "sun", "mon", "wed"], ["tue"]]
    assert data["costs_per_million"]["usd"]["output"] == "0.092"  # 16.56 / 180
    prices = {tier: each["usd"]["output"] for tier, each in data["prices_per_million"].items()}
    assert prices == {"standard": "0.092", "off-peak": "0.046", "peak": "0.184"}
    assert "off-peak price, output (below cost)" in run(capsys, "sheet", *arguments, *periods)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"measured": None}, "either --measured or --predicted"),
        ({"predicted": "a model"}, "either --measured or --predicted"),
        ({"measured": ""}, "text is empty"),
        ({"decode": "fast"}, "--decode: str 'fast' is not a decimal number"),
        ({"decode": "nan"}, "--decode"),
        ({"decode": "-5"}, "decode_tokens_per_s must be above 0"),
        ({"cached": "99999"}, "a cache hit would be dearer than a miss"),
        ({"utilisation": "40"}, "0.4 for 40%"),
        ({"margin": "5"}, "0.05 for 5%"),
        ({"created": "today"}, "--created: str 'today' is not a date"),
        ({"valid_from": "2024-05-06T00:00"}, "--valid-from: 2024-05-06T00:00:00 has no time zone"),
        ({"exchange_date": "never"}, "date 'never' is not an ISO date"),
        ({"power_w": "300"}, "all of --power-w, --usd-per-kwh and --energy-source"),
        ({"period": "night 16:30-00:30"}, "write name, days, hours, zone, factor"),
        ({"period": "night mon-son 16:30-00:30 UTC 0.5"}, "'mon-son' is not a range of days"),
        ({"period": "night mon-sun 16:30-00:30 UTC half"}, "factor: str 'half' is not a decimal"),
    ],
)
def test_a_sheet_that_cannot_be_is_named(
    capsys: pytest.CaptureFixture[str], changes: dict[str, str | None], words: str
) -> None:
    assert words in refused(capsys, "sheet", *options(**changes))


def test_compare_shows_ratios_and_the_claim_that_contradicts_them(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "compare")
    assert "71.43" in shown and "CONFLICT: LLaMA 3 70B" in shown and "agrees: GPT-4-Turbo-1106" in shown
    facts = json.loads(run(capsys, "compare", "--json"))
    by_label = {each["label"]: each for each in facts["prices"]}
    llama = by_label["LLaMA 3 70B"]
    assert (llama["input_ratio"], llama["output_ratio"]) == ("27", "40.5")
    assert [each["agrees"] for each in facts["claims"]] == [True, False]
    assert facts["ours"]["label"] not in by_label


def test_compare_a_sheet_with_the_price_of_its_day(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "sheet.json"
    write_sheet(V2_NODE, path)
    filters = ("--provider", "deepseek", "--until", "2024-05-31")
    facts = json.loads(run(capsys, "compare", path, *filters, "--json"))
    (launch,) = facts["prices"]
    assert float(launch["output_ratio"]) == pytest.approx(0.28 * 180 / 16, rel=1e-4)
    assert float(launch["break_even_utilisation"]) == pytest.approx(0.317, abs=0.0005)
    assert facts["claims"] == []
    assert "31.7%" in run(capsys, "compare", path, *filters)
    assert "no public prices of that provider and time" in refused(capsys, "compare", "--since", "2030")
    assert "since 2025 is after until 2024" in refused(capsys, "compare", "--since", "2025", "--until", "2024")
    assert "since: date '2024-99' is not an ISO date" in refused(capsys, "compare", "--since", "2024-99")
    assert "no public price of 'DeepSeek-V9'" in refused(capsys, "compare", "DeepSeek-V9")
    assert "cannot be read" in refused(capsys, "compare", tmp_path / "none.json")


def test_the_published_day(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(capsys, "day")
    for text in ("$87,072", "$562,100", "562,027", "226.86", "226.75", "56.25%", "545.6%", "84.5%"):
        assert text in shown
    account = json.loads(run(capsys, "day", "--json"))["account"]
    assert (account["cost_usd"], account["revenue_usd"], account["hit_share"]) == ("87072", "562100", "0.5625")
    assert json.loads(run(capsys, "day", "--prices", "DeepSeek-V3", "--json"))["published"] is None


@pytest.fixture
def books(tmp_path: Path) -> dict[str, Path]:
    """An hour in which 90M tokens were generated: half of what the machine can do."""
    sheet, ledger, hours = tmp_path / "sheet.json", tmp_path / "ledger.jsonl", tmp_path / "hours.jsonl"
    write_sheet(V2_NODE, sheet)
    lines = []
    for number in range(1, 10):
        at = moment_of(f"2026-11-18T08:00:0{number}Z", "a test")
        total = charge(V2_NODE, Usage(0, 0, 10_000_000), at).total
        row = LedgerRow(number, f"r{number}", at, "deepseek-v2", V2_NODE.version, Usage(0, 0, 10_000_000), total)
        lines.append(ledger_line(row))
    ledger.write_text("".join(lines))
    span = {"from": "2026-11-18T08:00:00Z", "to": "2026-11-18T09:00:00Z"}
    hours.write_text(json.dumps({"machine": "a", **span, "usd_per_hour": "16"}) + "\n")
    return {"sheet": sheet, "ledger": ledger, "hours": hours, "next": tmp_path / "next.json"}


def test_reconcile_shows_idle_time_and_proposes_the_next_sheet(
    capsys: pytest.CaptureFixture[str], books: dict[str, Path]
) -> None:
    arguments = [books["ledger"], "--sheet", books["sheet"]]
    created = ["--created", "2026-11-19"]
    facts = json.loads(run(capsys, "reconcile", *arguments, "--hours", books["hours"], *created, "--json"))
    assert (facts["machine_usd"], facts["idle_usd"], facts["idle_s"]) == ("16", "8", "1800")
    assert facts["revenue_usd"] == "8.00001"  # 90M tokens at 0.088889
    assert facts["margin"] == "-0.499999"
    assert facts["next"]["utilisation"] == "0.5"
    assert facts["next"]["prices_per_million"]["standard"]["cny"]["output"] == "1.28"
    assert float(facts["next_margin"]) == pytest.approx(0, abs=1e-5)
    one = ["--machine", "a", "--since", "2026-11-18T08:00:00Z", "--until", "2026-11-18T09:00:00Z"]
    shown = run(capsys, "reconcile", *arguments, *one, "--usd-per-hour", "16", *created, "--out", books["next"])
    assert "idle" in shown and "-50.00% of cost" in shown
    assert read_sheet(books["next"]).version == facts["next"]["version"]


def test_reconcile_refuses_what_does_not_add_up(capsys: pytest.CaptureFixture[str], books: dict[str, Path]) -> None:
    arguments: list[Any] = ["reconcile", books["ledger"], "--sheet", books["sheet"]]
    assert "what did machines cost?" in refused(capsys, *arguments)
    assert "not both" in refused(capsys, *arguments, "--hours", books["hours"], "--machine", "a")
    assert "line 1: sequence 1 after 5" in refused(capsys, *arguments, "--hours", books["hours"], "--after", 5)
    arguments += ["--hours", books["hours"]]
    assert "after must be 0" in refused(capsys, *arguments, "--after", -1)
    assert "the ledger ends with sequence 9, not 12" in refused(capsys, *arguments, "--last", 12)
    other = books["sheet"].with_name("beta.json")
    write_sheet(replace(V2_NODE, model="beta"), other)
    assert "sheets of several models: 'beta', 'deepseek-v2'" in refused(capsys, *arguments, "--sheet", other)
    early = ("--created", "2026-11-18", "--out", books["next"])
    assert "choose a later one" in refused(capsys, *arguments, *early)
    assert not books["next"].exists()
    arguments = arguments[:-2]
    lines = books["ledger"].read_text().splitlines(keepends=True)
    books["ledger"].write_text("".join(lines[:3] + lines[4:]))
    assert "line 4: sequence 5 after 3: a hole" in refused(capsys, *arguments, "--hours", books["hours"])
    books["ledger"].unlink()
    assert "cannot be read: No such file" in refused(capsys, *arguments, "--hours", books["hours"])
