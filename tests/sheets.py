"""Price sheets to test with."""

from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

from tapwater.cost.hardware import Rent
from tapwater.cost.inputs import Basis, Exchange, Rates
from tapwater.cost.period import DAYS, Period
from tapwater.cost.price import PriceSheet

NIGHT = Period("off-peak", DAYS, "16:30", "00:30", "UTC", Decimal("0.5"))
WORK = ("mon", "tue", "wed", "thu", "fri")
MORNING = Period("morning", WORK, "09:00", "12:00", "Asia/Shanghai", Decimal(2))
AFTERNOON = Period("afternoon", WORK, "14:00", "18:00", "Asia/Shanghai", Decimal(2))

# DeepSeek-V2's published node: 8 GPUs at $2, 50K tokens/s out, 100K in; cached rate, and no idle time, are made up.
V2_NODE = PriceSheet(
    model="deepseek-v2",
    machine="8 x H800",
    created=date(2024, 5, 6),
    valid_from=datetime(2024, 5, 6, tzinfo=UTC),
    basis=Basis("measured", "DeepSeek-V2 report, section 3.2.3"),
    rates=Rates(Decimal(100_000), Decimal(1_000_000), Decimal(50_000)),
    usd_per_hour=Rent(Decimal(16), "DeepSeek-V3 report, table 1: $2 per H800-hour", "2024-12"),
    utilisation=Decimal(1),
    margin=Decimal(0),
    exchange=Exchange(Decimal("7.2"), "an assumption of the tests", "2024-05-06"),
)


def v2_sheet(**changes: Any) -> PriceSheet:
    return replace(V2_NODE, **changes)
