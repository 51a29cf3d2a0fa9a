"""`tapwater price`: price sheets from what was measured, beside public prices, and against what machines cost."""

import json
import sys
from pathlib import Path

from cyclopts import App

from tapwater.cli.common import progress_bar
from tapwater.cli.output import AsJson, write_json
from tapwater.cli.price_options import creation_date, energy_of, hours_of, period_of, start_of
from tapwater.cli.price_tables import (
    break_even,
    comparison_facts,
    day_facts,
    reconciled_facts,
    show_comparison,
    show_day,
    show_reconciliation,
    show_sheet,
    six_decimals,
)
from tapwater.cost import compare as compared
from tapwater.cost.figure import Rent
from tapwater.cost.inputs import Basis, Exchange, Rates
from tapwater.cost.money import decimal_of, moment_of
from tapwater.cost.price import PriceSheet
from tapwater.cost.sheet_file import read_sheet, sheet_json, write_sheet
from tapwater.errors import ConfigError

price = App(name="price", help="What a token costs and is sold for: a little above cost, never typed in.")


@price.command
def sheet(
    *,
    model: str,
    machine: str,
    prefill: str,
    cached: str,
    decode: str,
    measured: str | None = None,
    predicted: str | None = None,
    utilisation: str,
    usd_per_hour: str,
    rent_source: str,
    rent_date: str | None = None,
    power_w: str | None = None,
    usd_per_kwh: str | None = None,
    energy_source: str | None = None,
    cny_per_usd: str,
    exchange_source: str,
    exchange_date: str | None = None,
    margin: str = "0.05",
    period: list[str] | None = None,
    created: str | None = None,
    valid_from: str | None = None,
    valid_until: str | None = None,
    out: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Compute a price sheet from measured rates and what the machine costs.

    Cost per token is the machine's hour over the tokens it does in one, over the share of time it is busy. Numbers are
    read as decimals, prices rounded once: up to a millionth of a dollar or yuan per million tokens.

    Parameters
    ----------
    model
        What is served.
    machine
        What it is served on.
    prefill
        Tokens per second of prompts that are not in the cache, at the load served.
    cached
        Tokens per second of prompts found in the cache.
    decode
        Tokens per second generated, all requests together.
    measured
        Where the rates were measured: command, commit, date. Either this or --predicted.
    predicted
        What predicts the rates, if nothing was measured.
    utilisation
        Share of paid time in which the machine is busy, e.g. 0.4.
    usd_per_hour
        Rent of the machine.
    rent_source
        Who asks this rent.
    rent_date
        When; without it the day of --created.
    power_w
        Mean power of the whole machine, where electricity is paid for besides.
    usd_per_kwh
        Price of electricity.
    energy_source
        Where power and price are from.
    cny_per_usd
        Yuan for a dollar.
    exchange_source
        Who says so.
    exchange_date
        When; without it the day of --created.
    margin
        Profit as a share of cost, at most 1.
    period
        Hours with a factor, e.g. "off-peak mon-sun 16:30-00:30 UTC 0.5"; repeatable. Completion decides.
    created
        Date of the sheet; without it today (UTC).
    valid_from
        Time from which it holds, with zone; without it the start of --created in UTC.
    valid_until
        Time from which it no longer holds.
    out
        Write the sheet to this new file.
    """
    if (measured is None) == (predicted is None):
        raise ConfigError("give either --measured or --predicted: a price says what its rates come from")
    day = creation_date(created)
    made = PriceSheet(
        model=model,
        machine=machine,
        created=day,
        valid_from=start_of(valid_from, day),
        valid_until=None if valid_until is None else moment_of(valid_until, "--valid-until"),
        basis=Basis("measured", measured) if measured is not None else Basis("predicted", predicted or ""),
        rates=Rates(decimal_of(prefill, "--prefill"), decimal_of(cached, "--cached"), decimal_of(decode, "--decode")),
        usd_per_hour=Rent(decimal_of(usd_per_hour, "--usd-per-hour"), rent_source, rent_date or day.isoformat()),
        energy=energy_of(power_w, usd_per_kwh, energy_source, day),
        utilisation=decimal_of(utilisation, "--utilisation"),
        margin=decimal_of(margin, "--margin"),
        exchange=Exchange(decimal_of(cny_per_usd, "--cny-per-usd"), exchange_source, exchange_date or day.isoformat()),
        periods=tuple(period_of(text) for text in period or ()),
    )
    if out is not None:
        write_sheet(made, out)
    if as_json:
        sys.stdout.write(sheet_json(made))
    else:
        show_sheet(made)


@price.command
def compare(
    ours: str = compared.LAUNCH,
    /,
    *,
    provider: str | None = None,
    since: str | None = None,
    until: str | None = None,
    as_json: AsJson = False,
) -> None:
    """Show how many times dearer public prices are.

    Input is uncached; the blend is three tokens of input to one of output.

    Parameters
    ----------
    ours
        A price sheet (a .json file) or a public price such as "DeepSeek-V3" or "DeepSeek-R1 off-peak".
    provider
        Only prices of this provider.
    since
        Only prices of this year, month or day and later.
    until
        Only prices up to this year, month or day.
    """
    own_sheet = read_sheet(Path(ours)) if ours.endswith(".json") else None
    base = compared.find_price(ours) if own_sheet is None else compared.sheet_price(own_sheet)
    others = [each for each in compared.select_prices(provider, since, until) if each != base]
    if not others:
        raise ConfigError("no public prices of that provider and time; `tapwater price compare` lists all there are")
    ratios = compared.compare_prices(base, others)
    claims = compared.check_claims() if base.label == compared.LAUNCH else []
    breaks = [break_even(own_sheet, each) for each in ratios] if own_sheet is not None else []
    if as_json:
        write_json(comparison_facts(base, ratios, breaks, claims))
    else:
        show_comparison(base, ratios, breaks, claims)


@price.command
def day(*, prices: str = "DeepSeek-R1", as_json: AsJson = False) -> None:
    """Account for the day DeepSeek published of its V3/R1 service: nodes, cost, revenue, margin.

    Parameters
    ----------
    prices
        The public price of all tokens; DeepSeek's own account takes R1's.
    """
    from tapwater.cost import production  # of no use to the other verbs

    inputs = production.published_day(prices)
    result = production.account(inputs)
    published = production.PUBLISHED if prices == "DeepSeek-R1" else None
    if as_json:
        write_json(day_facts(inputs, result, published))
    else:
        show_day(inputs, result, published, prices)


@price.command
def reconcile(
    ledger: Path,
    /,
    *,
    sheet: list[Path],
    hours: Path | None = None,
    machine: str | None = None,
    since: str | None = None,
    until: str | None = None,
    usd_per_hour: str | None = None,
    after: int = 0,
    last: int | None = None,
    created: str | None = None,
    valid_from: str | None = None,
    out: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Hold what requests were charged against what the machines cost, and propose the next price sheet.

    A ledger with a hole is refused, with the line: a missing or repeated row, a time that goes back, a charge that is
    not what its sheet says, a last line cut off. All sheets are of one model on one machine.

    Parameters
    ----------
    ledger
        JSON lines, one a request, in the order of completion.
    sheet
        A price sheet requests were charged by; repeatable.
    hours
        Machine hours, JSON lines; or one machine with --machine --since --until --usd-per-hour.
    machine
        Name of the one machine.
    since
        Time from which it was paid for, with zone.
    until
        Time until which it was paid for, with zone.
    usd_per_hour
        What an hour of it cost, electricity included.
    after
        The last sequence number reconciled before; 0 for none.
    last
        The sequence number the ledger must end with, so that rows missing at its end are found.
    created
        Date of the next sheet; without it today (UTC).
    valid_from
        Time from which it holds, with zone; without it the start of --created in UTC.
    out
        Write the next sheet to this new file.
    """
    from rich.progress import DownloadColumn, TimeRemainingColumn  # as slow to load as all the rest

    from tapwater.cost.ledger import read_ledger
    from tapwater.cost.next_sheet import propose, revenue_at
    from tapwater.cost.reconcile import reconcile_ledger

    sheets = [read_sheet(path) for path in sheet]
    paid = hours_of(hours, machine, since, until, usd_per_hour)
    with progress_bar(f"Reading {ledger.name}", DownloadColumn(), TimeRemainingColumn()) as progress:
        result = reconcile_ledger(read_ledger(ledger, progress), sheets, paid, after, last)
    day = creation_date(created)
    following = propose(result, sheets, day, start_of(valid_from, day))
    if out is not None:
        write_sheet(following, out)
    earned = revenue_at(following, result)
    expected = (earned - result.machine_usd) / result.machine_usd
    if as_json:
        following_facts = json.loads(sheet_json(following))
        write_json(reconciled_facts(result) | {"next": following_facts, "next_margin": six_decimals(expected)})
    else:
        show_reconciliation(result, following, expected)
