"""A ledger against machine hours: sums are exact, idle time is seen, holes are refused with their line."""

import decimal
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sheets import NIGHT, v2_sheet
from tapwater.cost.inputs import Basis
from tapwater.cost.ledger import LedgerRow, MachineHours, ledger_line, read_hours, read_ledger
from tapwater.cost.next_sheet import propose, revenue_at
from tapwater.cost.price import PriceSheet, Usage, charge
from tapwater.cost.reconcile import Reconciliation, reconcile_ledger
from tapwater.errors import ConfigError

SHEET = v2_sheet(margin=Decimal("0.05"), utilisation=Decimal("0.5"), periods=(NIGHT,))
START = datetime(2026, 11, 18, 8, tzinfo=UTC)
TOMORROW = START + timedelta(days=1)
HOURS = [MachineHours("a", START, START + timedelta(hours=1), Decimal(16))]


def rows(
    usages: list[Usage], sheet: PriceSheet = SHEET, machine_s: str | None = None, start: datetime = START
) -> list[LedgerRow]:
    found = []
    for index, usage in enumerate(usages):
        at = start + timedelta(seconds=index)
        share = None if machine_s is None else Decimal(machine_s)
        total = charge(sheet, usage, at).total
        found.append(LedgerRow(index + 1, f"r{index}", at, sheet.model, sheet.version, usage, total, share))
    return found


def write(path: Path, found: list[LedgerRow]) -> Path:
    path.write_text("".join(ledger_line(row) for row in found))
    return path


def run(path: Path, sheets: list[PriceSheet] | None = None, **options: Any) -> Reconciliation:
    return reconcile_ledger(read_ledger(path), sheets or [SHEET], options.pop("hours", HOURS), **options)


FIVE = [Usage(1000 * n, 500_000, 20_000_000) for n in range(5)]


def test_sums_idle_time_and_margin(tmp_path: Path) -> None:
    found = rows(FIVE)
    result = run(write(tmp_path / "ledger", found))
    assert (result.first_sequence, result.last_sequence, result.requests) == (1, 5, 5)
    assert result.revenue_pico_usd == sum(row.pico_usd for row in found)
    assert result.machine_usd == 16
    # 100M tokens at 50K/s, 2.5M at 100K/s, 10K at 1M/s
    assert result.busy_s == Decimal("2025.01")
    assert result.idle_s == Decimal("1574.99")
    assert result.idle_usd == 16 * Decimal("1574.99") / 3600
    assert result.profit_usd == result.revenue_usd - 16
    assert result.margin == result.profit_usd / 16
    assert result.usage == {(SHEET.version, "standard"): sum(FIVE[1:], FIVE[0])}


def test_measured_machine_time_is_taken_where_it_is_recorded(tmp_path: Path) -> None:
    result = run(write(tmp_path / "ledger", rows(FIVE, machine_s="240.5")))
    assert result.busy_measured
    assert result.busy_s == Decimal("1202.5")
    with pytest.raises(ConfigError, match="add up to 5000 s, but machines were paid for only 3600 s"):
        run(write(tmp_path / "ledger", rows(FIVE, machine_s="1000")))


counts = st.integers(0, 10**7)


@given(
    usages=st.lists(st.builds(Usage, counts, counts, st.integers(1, 10**7)), min_size=1, max_size=6),
    machine_s=st.none() | st.decimals("1", "500", places=3).map(str),
    start=st.sampled_from([START, START.replace(hour=16, minute=29, second=58)]),  # by day, and from day into night
)
def test_the_next_sheet_earns_cost_and_margin_from_the_same_requests(
    usages: list[Usage], machine_s: str | None, start: datetime
) -> None:
    found = rows(usages, machine_s=machine_s, start=start)
    hours = [replace(HOURS[0], start=start, end=start + timedelta(hours=1))]
    result = reconcile_ledger((("line", row) for row in found), [SHEET], hours)
    following = propose(result, [SHEET], date(2026, 11, 19), START + timedelta(days=1))
    tokens = sum(sum(vars(each).values()) for each in usages)
    wanted = result.machine_usd * Decimal("1.05")
    above = revenue_at(following, result) - wanted
    # never below cost; rounding prices up adds less than a pico-dollar a token, rounding ratios next to nothing
    assert 0 <= above < Decimal(tokens) / 10**12 + wanted / 10**8
    assert following.tiers["off-peak"] / following.tiers["standard"] == pytest.approx(Decimal("0.5"))
    assert following.basis.kind == "measured"  # as the proportion of its rates was
    assert SHEET.version in following.basis.text
    assert following.rates.decode_tokens_per_s / following.rates.prefill_tokens_per_s == pytest.approx(Decimal("0.5"))


def test_tiers_are_counted_apart(tmp_path: Path) -> None:
    night = START.replace(hour=16, minute=30)
    hours = [replace(HOURS[0], end=START + timedelta(hours=10))]
    day_row, later = rows([FIVE[0], FIVE[1]])
    night_row = replace(later, completed_at=night, pico_usd=charge(SHEET, FIVE[1], night).total)
    result = run(write(tmp_path / "ledger", [day_row, night_row]), hours=hours)
    assert result.usage == {(SHEET.version, "standard"): FIVE[0], (SHEET.version, "off-peak"): FIVE[1]}
    assert revenue_at(SHEET, result) == result.revenue_usd
    # charged as if it had been finished by day: DeepSeek's rule is the time of completion
    wrong = replace(night_row, pico_usd=later.pico_usd)
    with pytest.raises(ConfigError, match=r"line 2: charged .* \(off-peak\)"):
        run(write(tmp_path / "ledger", [day_row, wrong]), hours=hours)


def test_two_sheets_one_after_the_other(tmp_path: Path) -> None:
    dearer = replace(SHEET, margin=Decimal("0.1"), valid_from=START + timedelta(seconds=3))
    old = replace(SHEET, valid_until=dearer.valid_from)
    found = [
        replace(row, sheet_version=sheet.version, pico_usd=charge(sheet, row.usage, row.completed_at).total)
        for row, sheet in zip(rows(FIVE), [old, old, old, dearer, dearer], strict=True)
    ]
    result = run(write(tmp_path / "ledger", found), [old, dearer])
    assert {version for version, _ in result.usage} == {old.version, dearer.version}
    unused = replace(dearer, margin=Decimal("0.2"), valid_from=START + timedelta(days=300))
    for sheets in ([dearer, old, unused], [unused, old, dearer]):
        assert propose(result, sheets, date(2026, 11, 19), TOMORROW).margin == Decimal("0.1")
    with pytest.raises(ConfigError, match="no request of the ledger was charged by any"):
        propose(result, [unused], date(2026, 11, 19), TOMORROW)
    late = replace(found[3], sheet_version=old.version)
    with pytest.raises(ConfigError, match=r"line 4: .* price sheet .* is valid from"):
        run(write(tmp_path / "ledger", [*found[:3], late]), [old, dearer])


Change = Callable[[list[LedgerRow]], list[LedgerRow]]


def at(index: int, **changes: Any) -> Change:
    return lambda found: [replace(row, **changes) if n == index else row for n, row in enumerate(found)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: found[:2] + found[3:], "line 3: sequence 4 after 2: a hole"),
        (lambda found: [*found[:3], found[2], *found[3:]], "line 4: sequence 3 after 3: a row comes twice"),
        (lambda found: [*found[:2], found[0]], "line 3: sequence 1 after 2: a row comes twice, or out of order"),
        (lambda found: found[1:], "line 1: sequence 2 after 0: a hole: rows are missing; after is the last one"),
        (at(2, id="r0"), "line 3: request 'r0' was charged before"),
        (at(3, completed_at=START), "line 4: completed at 2026-11-18T08:00:00+00:00, the row above at"),
        (at(1, pico_usd=1), "line 2: charged 1 pico-USD; sheet"),
        (at(1, usage=Usage(0, 0, 1)), "line 2: charged"),
        (at(1, sheet_version="0123456789ab"), "line 2: unknown price sheet '0123456789ab'"),
        (at(1, model="deepseek-v3"), "line 2: model 'deepseek-v3', but sheet"),
        (
            at(4, completed_at=START + timedelta(hours=1)),
            "line 5: completed at 2026-11-18T09:00:00+00:00, when no machine",
        ),
        (at(2, machine_s=Decimal(1)), "line 3: machine_s must be in all rows or in none"),
    ],
)
def test_a_ledger_with_a_hole_is_refused_with_its_line(tmp_path: Path, change: Change, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run(write(tmp_path / "ledger", change(rows(FIVE))))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda text: text[:-1], "line 5: cut off"),
        (lambda text: text[:-20], "line 5: cut off"),
        (lambda text: text.replace('"id": "r1"', '"ident": "r1"'), "line 2: unknown field 'ident'"),
        (lambda text: text.replace('"id": "r1", ', ""), "line 2: missing field 'id'"),
        (lambda text: text.replace('"sequence": 3', '"sequence": 3.0'), "line 3: sequence is"),
        (
            lambda text: text.replace('"sequence": 1', '"sequence": 0'),
            "line 1: sequence must be at least 1, got 0",
        ),
        (
            lambda text: text.replace('"sequence": 3', '"sequence": true'),
            "line 3: sequence is True, not a whole number",
        ),
        (
            lambda text: text.replace('"sequence": 3', '"sequence": 3, "sequence": 3'),
            "line 3: 'sequence' is there twice",
        ),
        (lambda text: text.replace('_tokens": 2000,', '_tokens": -2000,'), "line 3: prompt_cache_hit_tokens must be"),
        (
            lambda text: text.replace("08:00:04+00:00", "08:00:04"),
            "line 5: completed_at: 2026-11-18T08:00:04 has no time",
        ),
        (lambda text: text.replace("\n", "\n\n", 1), "line 2: not JSON"),
        (lambda text: "[]\n" + text, "line 1: a row is a JSON object"),
        (lambda text: "", "the ledger is empty"),
    ],
)
def test_a_line_that_is_no_row_is_named(tmp_path: Path, edit: Callable[[str], str], words: str) -> None:
    path = write(tmp_path / "ledger", rows(FIVE))
    before = path.read_text()
    path.write_text(edit(before))
    assert path.read_text() != before
    with pytest.raises(ConfigError) as caught:
        run(path)
    assert words in str(caught.value)


def test_nothing_is_missing_between_two_ledgers(tmp_path: Path) -> None:
    path = write(tmp_path / "ledger", rows(FIVE)[2:])
    assert run(path, after=2).first_sequence == 3
    with pytest.raises(ConfigError, match="line 1: sequence 3 after 1: a hole"):
        run(path, after=1)
    with pytest.raises(ConfigError, match="after must be 0"):
        run(path, after=-1)


def test_a_ledger_cut_between_two_rows_is_found_by_its_last_number(tmp_path: Path) -> None:
    assert run(write(tmp_path / "ledger", rows(FIVE)), last=5).last_sequence == 5
    with pytest.raises(ConfigError, match="ends with sequence 4, not 5"):
        run(write(tmp_path / "ledger", rows(FIVE)[:4]), last=5)


def test_a_next_sheet_does_not_hold_for_requests_of_the_last(tmp_path: Path) -> None:
    result = run(write(tmp_path / "ledger", rows(FIVE)))
    assert result.last_completed_at == START + timedelta(seconds=4)
    propose(result, [SHEET], date(2026, 11, 19), START + timedelta(seconds=5))
    with pytest.raises(ConfigError, match=r"valid_from 2026-11-18T08:00:03.* is not after 2026-11-18T08:00:04"):
        propose(result, [SHEET], date(2026, 11, 19), START + timedelta(seconds=3))


@pytest.mark.parametrize("what", ["model", "machine"])
def test_models_and_machines_are_not_mixed(tmp_path: Path, what: str) -> None:
    other = replace(SHEET, **{what: "another", "valid_from": START + timedelta(hours=2)})
    with pytest.raises(ConfigError, match=f"sheets of several {what}s: '.*', '.*'; reconcile each by itself") as caught:
        run(write(tmp_path / "ledger", rows(FIVE)), [SHEET, other])
    assert "'another'" in str(caught.value) and repr(getattr(SHEET, what)) in str(caught.value)


def test_the_callers_decimal_context_changes_nothing(tmp_path: Path) -> None:
    def sums() -> list[object]:
        hours = [replace(HOURS[0], end=START + timedelta(hours=1, microseconds=7), usd_per_hour=Decimal("16.123456"))]
        result = run(write(tmp_path / "ledger", rows(FIVE, machine_s="240.123456")), hours=hours)
        names = ("idle_s", "idle_usd", "profit_usd", "margin", "revenue_usd")
        return [*vars(result).values(), *(getattr(result, name) for name in names)]

    expected = sums()
    with decimal.localcontext(prec=3):
        assert sums() == expected


def test_a_row_comes_back_from_its_line(tmp_path: Path) -> None:
    found = rows(FIVE, machine_s="0.125")
    assert [row for _, row in read_ledger(write(tmp_path / "ledger", found))] == found


def test_reading_is_reported_in_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "ledger", rows(FIVE))
    seen: list[tuple[int, int]] = []
    list(read_ledger(path, lambda done, total: seen.append((done, total))))
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)


def hours_file(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


LINE = {"machine": "a", "from": "2026-11-18T08:00:00Z", "to": "2026-11-18T10:00:00Z", "usd_per_hour": "16"}


def test_machine_hours_add_up_over_machines(tmp_path: Path) -> None:
    other = LINE | {"machine": "b", "from": "2026-11-18T09:30:00Z", "to": "2026-11-18T11:00:00Z", "usd_per_hour": "2.5"}
    paid = read_hours(hours_file(tmp_path / "hours", LINE, other))
    result = run(write(tmp_path / "ledger", rows(FIVE)), hours=paid)
    assert result.machine_usd == Decimal("35.75")
    assert result.machine_s == 12_600
    assert (result.start, result.end) == (START, START + timedelta(hours=3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"usd_per_hour": 16.5}, "line 1: usd_per_hour is"),
        ({"usd_per_hour": "0"}, "line 1: usd_per_hour must be above 0"),
        ({"to": "2026-11-18T08:00:00Z"}, "line 1: machine a: to"),
        ({"from": "2026-11-18T08:00:00"}, "line 1: from: 2026-11-18T08:00:00 has no time zone"),
        ({"rent": "1"}, "line 1: unknown field 'rent'"),
    ],
)
def test_hours_that_cannot_be_are_named(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_hours(hours_file(tmp_path / "hours", LINE | change))
    assert words in str(caught.value)


def test_a_machine_paid_for_twice_or_never_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "ledger", rows(FIVE))
    with pytest.raises(ConfigError, match="machine a is paid for twice"):
        run(
            path,
            hours=[HOURS[0], replace(HOURS[0], start=START + timedelta(minutes=59), end=START + timedelta(hours=2))],
        )
    with pytest.raises(ConfigError, match="no machine hours"):
        run(path, hours=[])


def test_a_ledger_without_tokens_gives_no_price(tmp_path: Path) -> None:
    result = run(write(tmp_path / "ledger", rows([Usage(0, 0, 0)])))
    assert result.margin == -1
    with pytest.raises(ConfigError, match="no price follows"):
        propose(result, [SHEET], date(2026, 11, 19), TOMORROW)


def test_a_ledger_does_not_measure_rates_that_were_predicted(tmp_path: Path) -> None:
    guessed = replace(SHEET, basis=Basis("predicted", "a plan"))
    result = run(write(tmp_path / "ledger", rows(FIVE, guessed)), [guessed])
    assert propose(result, [guessed], date(2026, 11, 19), TOMORROW).basis.kind == "predicted"


def test_more_tokens_than_the_machines_can_have_done_are_refused(tmp_path: Path) -> None:
    ten_minutes = [replace(HOURS[0], end=START + timedelta(minutes=10))]
    with pytest.raises(
        ConfigError, match=r"take 2025\.01 s of a machine, but machines were paid for only 600 s: are hours missing"
    ):
        run(write(tmp_path / "ledger", rows(FIVE)), hours=ten_minutes)


def test_machines_that_measurably_did_more_than_their_rates_say_are_faster_not_busier(tmp_path: Path) -> None:
    ten_minutes = [replace(HOURS[0], end=START + timedelta(minutes=10))]
    result = run(write(tmp_path / "ledger", rows(FIVE, machine_s="120")), hours=ten_minutes)
    assert (result.busy_s, result.idle_s) == (600, 0)
    following = propose(result, [SHEET], date(2026, 11, 19), TOMORROW)
    assert following.utilisation == 1
    assert following.rates.decode_tokens_per_s == pytest.approx(50_000 * Decimal("2025.01") / 600)
