"""Prices: computed from what was measured and paid, compared with public ones, reconciled with a ledger."""

from tapwater.cost.compare import (
    Amounts,
    CheckedClaim,
    Claim,
    Comparison,
    ListPrice,
    break_even_tokens_per_s,
    break_even_utilisation,
    check_claims,
    compare_prices,
    find_price,
    list_prices,
    revenue_per_hour,
    select_prices,
    sheet_price,
)
from tapwater.cost.inputs import Basis, Energy, Exchange, Rates, hourly_cost
from tapwater.cost.ledger import LedgerRow, MachineHours, ledger_line, read_hours, read_ledger
from tapwater.cost.next_sheet import propose, revenue_at
from tapwater.cost.period import Period
from tapwater.cost.price import Charge, PerMillion, PerToken, PriceSheet, Usage, charge, pico_amount
from tapwater.cost.production import Account, Day, account, published_day
from tapwater.cost.reconcile import Reconciliation, reconcile_ledger
from tapwater.cost.sheet_file import read_sheet, sheet_json, write_sheet

__all__ = [
    "Account",
    "Amounts",
    "Basis",
    "Charge",
    "CheckedClaim",
    "Claim",
    "Comparison",
    "Day",
    "Energy",
    "Exchange",
    "LedgerRow",
    "ListPrice",
    "MachineHours",
    "PerMillion",
    "PerToken",
    "Period",
    "PriceSheet",
    "Rates",
    "Reconciliation",
    "Usage",
    "account",
    "break_even_tokens_per_s",
    "break_even_utilisation",
    "charge",
    "check_claims",
    "compare_prices",
    "find_price",
    "hourly_cost",
    "ledger_line",
    "list_prices",
    "pico_amount",
    "propose",
    "published_day",
    "read_hours",
    "read_ledger",
    "read_sheet",
    "reconcile_ledger",
    "revenue_at",
    "revenue_per_hour",
    "select_prices",
    "sheet_json",
    "sheet_price",
    "write_sheet",
]
