"""What `tapwater price` shows: tables, and the same as plain JSON."""

import sys
from collections.abc import Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tapwater.cli.text_table import text_table
from tapwater.cost import compare as compared
from tapwater.cost.inputs import hourly_cost
from tapwater.cost.money import dump, plain
from tapwater.cost.price import Currency, PriceSheet

if TYPE_CHECKING:
    from tapwater.cost.production import Account, Day, Published
    from tapwater.cost.reconcile import Reconciliation


def break_even(sheet: PriceSheet, ratio: compared.Comparison) -> Decimal:
    """The share of time the sheet's machine must be busy to earn its hour at the other's output price."""
    other = ratio.other.amounts(ratio.currency)
    hour = hourly_cost(sheet.usd_per_hour, sheet.energy)
    hour *= 1 if ratio.currency == "USD" else sheet.exchange.cny_per_usd
    assert other is not None  # the currency of a comparison is one both have
    return compared.break_even_utilisation(hour, sheet.rates.decode_tokens_per_s, other.output)


def _ratios(each: compared.Comparison | compared.CheckedClaim) -> dict[str, str]:
    blend = {"blend_3_to_1": six_decimals(each.blend)} if isinstance(each, compared.Comparison) else {}
    return {"input_ratio": six_decimals(each.input), "output_ratio": six_decimals(each.output), **blend}


def reconciled_facts(result: "Reconciliation") -> dict[str, Any]:
    facts = {name: dump(value) for name, value in vars(result).items() if name != "usage"}
    facts["usage"] = [
        {"sheet_version": version, "tier": tier, **dump(used)} for (version, tier), used in result.usage.items()
    ]
    for name in ("machine_usd", "idle_s", "idle_usd", "profit_usd", "margin"):
        facts[name] = six_decimals(getattr(result, name))
    return facts | {"revenue_usd": plain(result.revenue_usd)}


def show_sheet(sheet: PriceSheet) -> None:
    columns: tuple[Currency, ...] = ("USD", "CNY")
    names = ("input_hit", "input_miss", "output")
    costs = [sheet.costs(currency) for currency in columns]
    rows: list[tuple[str, ...]] = [
        (f"cost, {name.replace('_', ' ')}", *(f"{getattr(each, name):.6f}" for each in costs)) for name in names
    ]
    for tier, factor in sheet.tiers.items():
        rows.append(("", "", ""))
        prices = [sheet.prices(currency, tier) for currency in columns]
        below = " (below cost)" if factor * (1 + sheet.margin) < 1 else ""
        for name in names:
            label = f"{tier} price, {name.replace('_', ' ')}{below}"
            rows.append((label, *(f"{getattr(each, name):.6f}" for each in prices)))
    title = f"{sheet.model} on {sheet.machine}, sheet {sheet.version}: per million tokens"
    hour = hourly_cost(sheet.usd_per_hour, sheet.energy)
    sys.stdout.write(
        f"{title}\n{_numbers(columns, rows)}\n{sheet.basis.kind}: {sheet.basis.text}\n"
        f"${plain(round(hour, 6))} an hour, busy {sheet.utilisation:.1%} of it, margin {sheet.margin:.1%}; "
        f"{plain(sheet.exchange.cny_per_usd)} yuan a dollar ({sheet.exchange.source}, {sheet.exchange.date})\n"
    )


def comparison_facts(
    base: compared.ListPrice,
    ratios: Sequence[compared.Comparison],
    breaks: Sequence[Decimal],
    claims: Sequence[compared.CheckedClaim],
) -> dict[str, Any]:
    rows = [
        {**dump(each.other), "label": each.other.label, "currency": each.currency, **_ratios(each)} for each in ratios
    ]
    for row, needed in zip(rows, breaks, strict=False):
        row["break_even_utilisation"] = six_decimals(needed)
    checked = [{**dump(each.claim), **_ratios(each), "agrees": each.agrees} for each in claims]
    return {"ours": {**dump(base), "label": base.label}, "prices": rows, "claims": checked}


def show_comparison(
    base: compared.ListPrice,
    ratios: Sequence[compared.Comparison],
    breaks: Sequence[Decimal],
    claims: Sequence[compared.CheckedClaim],
) -> None:
    columns = ("", "input", "output", "3:1", *(["break even"] if breaks else []), "date", "#")
    rows: list[tuple[str, ...]] = []
    sources = list(dict.fromkeys(each.other.source for each in ratios))
    for index, each in enumerate(ratios):
        needed = [f"{breaks[index]:.1%}"] if breaks else []
        cells = [f"{each.input:.2f}", f"{each.output:.2f}", f"{each.blend:.2f}", *needed, each.other.date]
        rows.append((each.other.label, *cells, str(sources.index(each.other.source) + 1)))
    table = text_table(columns, rows, "lrrr" + "r" * bool(breaks) + "l")
    sys.stdout.write(f"times dearer than {base.label}\n{table}\n")
    for number, source in enumerate(sources, 1):
        sys.stdout.write(f"{number:2}  {source}\n")
    for each in claims:
        verdict = "agrees" if each.agrees else "CONFLICT"
        sys.stdout.write(
            f"{verdict}: {each.claim.model} is said to be {plain(each.claim.times)} times dearer ({each.claim.date}, "
            f"{each.claim.source}); by the price list {each.input:.1f} for input, {each.output:.1f} for output\n"
        )


def day_facts(inputs: "Day", result: "Account", published: "Published | None") -> dict[str, Any]:
    facts = {name: six_decimals(value) for name, value in vars(result).items()}
    facts |= {"profit_usd": six_decimals(result.profit_usd), "nodes": six_decimals(result.nodes)}
    return {"day": dump(inputs), "account": facts, "published": dump(published)}


def show_day(inputs: "Day", result: "Account", published: "Published | None", prices: str) -> None:
    rows: list[tuple[str, ...]] = []
    said = vars(published) if published is not None else {}

    def row(name: str, text: str, key: str = "", form: str = "") -> None:
        rows.append((name, text, format(said[key], form) if key in said else ""))

    row("cost", f"${result.cost_usd:,.0f}", "cost_usd", ",.0f")
    row("revenue", f"${result.revenue_usd:,.0f}", "revenue_usd", ",.0f")
    row("profit over cost", f"{result.margin:.1%}", "margin", ".0%")
    row("profit over revenue", f"{result.gross_margin:.1%}")
    row("cache hits of input", f"{result.hit_share:.2%}", "hit_share", ".1%")
    row("nodes, by their speed", f"{result.nodes:.2f}", "nodes", ".2f")
    row("  for prefill", f"{result.prefill_nodes:.1f}")
    row("  for decode", f"{result.decode_nodes:.1f}")
    row("cost of a million input tokens", f"${result.input_usd_per_million:.4f}")
    row("cost of a million output tokens", f"${result.output_usd_per_million:.4f}")
    row("cost of a million, input and output", f"${result.blended_usd_per_million:.4f}")
    table = _numbers(("computed", "published"), rows)
    sys.stdout.write(f"{inputs.name}, {inputs.date}, at {prices} prices\n{table}\nsource: {inputs.source}\n")


def show_reconciliation(result: "Reconciliation", following: PriceSheet, expected: Decimal) -> None:
    share = result.busy_s / result.machine_s
    busy = "busy" if result.busy_measured else "busy, by the sheets' rates"
    rows = [
        ("machines", f"${result.machine_usd:,.6f} for {result.machine_s / 3600:,.2f} h"),
        (f"  {busy}", f"${result.machine_usd - result.idle_usd:,.6f}, {share:.1%} of the time"),
        ("  idle", f"${result.idle_usd:,.6f}, {1 - share:.1%} of the time"),
        ("revenue", f"${result.revenue_usd:,.12f}"),
        ("profit", f"{result.profit_usd:,.6f} USD, {result.margin:.2%} of cost"),
    ]
    sys.stdout.write(f"{result.requests:,} requests, sequence {result.first_sequence} to {result.last_sequence}\n")
    sys.stdout.write(f"{text_table(('', ''), rows, 'l')}\n")
    show_sheet(following)
    sys.stdout.write(f"these requests at those prices: {expected:.2%} of cost as profit\n")


def six_decimals(value: Decimal) -> str:
    return plain(round(value, 6))


def _numbers(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of a name and numbers a row; the last column of a text_table is flush left, so it gets an empty one."""
    return text_table(("", *columns, ""), [(*row, "") for row in rows], "l" + "r" * len(columns))
