"""What was charged against what machines cost."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from math import floor

from tapwater.config.parse import nearest
from tapwater.cost.inputs import Rates
from tapwater.cost.ledger import LedgerRow, MachineHours
from tapwater.cost.money import own_context, plain
from tapwater.cost.price import PriceSheet, Usage, charge, pico_amount
from tapwater.errors import ConfigError


@dataclass(frozen=True)
class Reconciliation:
    """Sums over a ledger and the machine hours it lies in; dollars and seconds.

    `busy_s` is the rows' machine_s, or without it (`busy_measured` false) the time their tokens take at the rates
    of the sheets they were charged by. `margin` is profit over cost, `usage` by version and tier.
    """

    first_sequence: int
    last_sequence: int
    last_completed_at: datetime
    requests: int
    usage: dict[tuple[str, str], Usage]
    revenue_pico_usd: int
    machine_s: Decimal
    machine_usd: Decimal
    busy_s: Decimal
    busy_measured: bool
    start: datetime
    end: datetime

    @property
    def revenue_usd(self) -> Decimal:
        return pico_amount(self.revenue_pico_usd)

    @property
    @own_context()
    def idle_s(self) -> Decimal:
        return self.machine_s - self.busy_s

    @property
    @own_context()
    def idle_usd(self) -> Decimal:
        """Cost of the time in which nobody asked for anything: part of `machine_usd`, not besides it."""
        return self.machine_usd * self.idle_s / self.machine_s

    @property
    @own_context()
    def profit_usd(self) -> Decimal:
        return self.revenue_usd - self.machine_usd

    @property
    @own_context()
    def margin(self) -> Decimal:
        return self.profit_usd / self.machine_usd


@own_context()
def reconcile_ledger(
    rows: Iterable[tuple[str, LedgerRow]],
    sheets: Sequence[PriceSheet],
    hours: Sequence[MachineHours],
    after: int = 0,
    last: int | None = None,
) -> Reconciliation:
    """Sum a ledger up, row by row; `rows` come with their place, as `read_ledger` gives them.

    `after` is the last sequence number reconciled before (0: none), so that nothing is missing in between; `last` the
    one the ledger must end with (None: any), for a cut between two rows cannot be seen in the file.

    ConfigError names sheets of several models or machines, tokens that machine hours cannot hold, and the first row
    that leaves a gap or comes twice, goes back in time, was charged otherwise than its sheet says, by an unknown sheet,
    outside all machine hours, or with an id seen before. Only ids are kept in memory.
    """
    if after < 0:
        raise ConfigError(f"after must be 0 (nothing was reconciled before) or more, got {after}")
    _check_one_price(sheets)
    by_version = {sheet.version: sheet for sheet in sheets}
    spans = _spans(hours)
    usage: dict[tuple[str, str], list[int]] = {}
    ids: set[str] = set()
    revenue, busy = 0, Decimal(0)
    first: LedgerRow | None = None
    before: LedgerRow | None = None
    for where, row in rows:
        previous = after if before is None else before.sequence
        if row.sequence != previous + 1:
            what = "a hole: rows are missing" if row.sequence > previous else "a row comes twice, or out of order"
            hint = "; after is the last one reconciled before" if before is None else ""
            raise ConfigError(f"{where}: sequence {row.sequence} after {previous}: {what}{hint}")
        if before is not None:
            _check_order(row, before, where)
        if row.id in ids:
            raise ConfigError(f"{where}: request {row.id!r} was charged before, in an earlier row")
        ids.add(row.id)
        if not any(start <= row.completed_at < end for start, end in spans):
            raise ConfigError(f"{where}: completed at {row.completed_at.isoformat()}, when no machine was paid for")
        tier = _check_charge(row, by_version, where)
        totals = usage.setdefault((row.sheet_version, tier), [0, 0, 0])
        for index, tokens in enumerate(vars(row.usage).values()):
            totals[index] += tokens
        revenue += row.pico_usd
        busy += row.machine_s or 0
        first, before = first or row, row
    if first is None or before is None:
        raise ConfigError("the ledger is empty: nothing to reconcile")
    if last is not None and before.sequence != last:
        raise ConfigError(f"the ledger ends with sequence {before.sequence}, not {last}: rows are missing, or too many")
    sums = {key: Usage(*totals) for key, totals in usage.items()}
    machine_s = sum((each.seconds for each in hours), Decimal(0))
    measured = first.machine_s is not None
    if measured and busy > machine_s:
        raise ConfigError(f"the rows' machine_s add up to {busy} s, but machines were paid for only {machine_s} s")
    if not measured:
        nominal = sum((nominal_s(used, by_version[version].rates) for (version, _), used in sums.items()), Fraction(0))
        busy = Decimal(f"{floor(nominal * 10**12)}E-12")
        if busy > machine_s:
            raise ConfigError(
                f"by the sheets' rates the tokens take {plain(busy)} s of a machine, but machines were paid for "
                f"only {plain(machine_s)} s: are hours missing, or rates too low? machine_s in all rows would say"
            )
    return Reconciliation(
        first_sequence=first.sequence,
        last_sequence=before.sequence,
        last_completed_at=before.completed_at,
        requests=len(ids),
        usage=sums,
        revenue_pico_usd=revenue,
        machine_s=machine_s,
        machine_usd=sum((each.seconds * each.usd_per_hour for each in hours), Decimal(0)) / 3600,
        busy_s=busy,
        busy_measured=measured,
        start=min(each.start for each in hours),
        end=max(each.end for each in hours),
    )


def nominal_s(usage: Usage, rates: Rates) -> Fraction:
    """Seconds of one machine that tokens take at these rates."""
    return (
        usage.prompt_cache_hit_tokens / Fraction(rates.cached_tokens_per_s)
        + usage.prompt_cache_miss_tokens / Fraction(rates.prefill_tokens_per_s)
        + usage.completion_tokens / Fraction(rates.decode_tokens_per_s)
    )


def _check_one_price(sheets: Sequence[PriceSheet]) -> None:
    """ConfigError for sheets of several models or machines: tokens of one say nothing about the price of another."""
    for what in ("model", "machine"):
        names = sorted({getattr(sheet, what) for sheet in sheets})
        if len(names) > 1:
            raise ConfigError(f"sheets of several {what}s: {', '.join(map(repr, names))}; reconcile each by itself")


def _check_order(row: LedgerRow, last: LedgerRow, where: str) -> None:
    if row.completed_at < last.completed_at:
        raise ConfigError(
            f"{where}: completed at {row.completed_at.isoformat()}, the row above at {last.completed_at.isoformat()}"
        )
    if (row.machine_s is None) != (last.machine_s is None):
        raise ConfigError(f"{where}: machine_s must be in all rows or in none, and the row above differs")


def _check_charge(row: LedgerRow, sheets: dict[str, PriceSheet], where: str) -> str:
    """The tier of a row that was charged as its sheet says."""
    if row.sheet_version not in sheets:
        hint = nearest(row.sheet_version, list(sheets))
        raise ConfigError(f"{where}: unknown price sheet {row.sheet_version!r}{hint}; known: {', '.join(sheets)}")
    sheet = sheets[row.sheet_version]
    if row.model != sheet.model:
        raise ConfigError(f"{where}: model {row.model!r}, but sheet {sheet.version} is for {sheet.model!r}")
    try:
        expected = charge(sheet, row.usage, row.completed_at)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    if row.pico_usd != expected.total:
        raise ConfigError(
            f"{where}: charged {row.pico_usd} pico-USD; sheet {sheet.version} says {expected.total} ({expected.tier})"
        )
    return expected.tier


def _spans(hours: Sequence[MachineHours]) -> list[tuple[datetime, datetime]]:
    """Times in which any machine was paid for; ConfigError where one is paid for twice."""
    if not hours:
        raise ConfigError("no machine hours: nothing to reconcile the ledger with")
    ordered = sorted(hours, key=lambda each: each.start)
    for name in Counter(each.machine for each in hours):
        for before, after in pairwise([each for each in ordered if each.machine == name]):
            if after.start < before.end:
                raise ConfigError(f"machine {name} is paid for twice from {after.start.isoformat()}")
    merged = [(ordered[0].start, ordered[0].end)]
    for each in ordered[1:]:
        start, end = merged[-1]
        if each.start <= end:
            merged[-1] = (start, max(end, each.end))
        else:
            merged.append((each.start, each.end))
    return merged
