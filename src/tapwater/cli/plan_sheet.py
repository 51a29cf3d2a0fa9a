"""A price sheet from predicted rates."""

from datetime import datetime
from decimal import Decimal

from tapwater.cost.hardware import Rent
from tapwater.cost.inputs import Basis, Exchange, Rates
from tapwater.cost.plan import Plan, decimal
from tapwater.cost.price import PriceSheet
from tapwater.errors import ConfigError

MARGIN = Decimal("0.05")


def predicted_sheet(found: Plan, model: str, cny_per_usd: Decimal, now: datetime) -> PriceSheet:
    """The sheet of one unit, whose costs are the plan's: its rates while busy, its rent, the plan's utilisation.

    ConfigError for a machine without rent, or hits that cost nothing.
    """
    machine, layout, busy = found.serving.machine, found.serving.layout, found.busy
    rent = machine.usd_per_hour
    if rent is None or found.usd_per_hour is None:
        raise ConfigError(f"--sheet: {machine.name} has no rent; give --usd-per-hour")
    if not busy.input_hit_s:
        raise ConfigError(
            "--sheet: a cache hit is predicted to cost nothing; measure it and use `tapwater price sheet`"
        )
    today = now.date().isoformat()
    formats, full = found.serving.formats, found.full
    spread = f"{full.low / full.tokens_per_s:.2f} to {full.high / full.tokens_per_s:.2f} times"
    text = (
        f"tapwater plan: weights {formats.weights}, cache {formats.cache}, prompts of {found.traffic.prompt_tokens} "
        f"tokens, {found.batch_limit:.0f} requests of {found.traffic.context:.0f} cached tokens generating; rates may "
        f"be {spread} these"
    )
    rates = (1 / each for each in (busy.input_miss_s, busy.input_hit_s, busy.output_s))
    return PriceSheet(
        model=model,
        machine=f"{machine.name}, layout {layout}, {found.nodes:g} nodes",
        created=now.date(),
        valid_from=_midnight(now),
        basis=Basis("predicted", text),
        rates=Rates(*(decimal(rate) for rate in rates)),
        usd_per_hour=Rent(found.usd_per_hour, f"{rent.source}; for {found.nodes:g} nodes", rent.date),
        utilisation=decimal(found.limits.utilisation),
        margin=MARGIN,
        exchange=Exchange(cny_per_usd, "an assumption of the plan", today),
    )


def _midnight(now: datetime) -> datetime:
    return now.replace(hour=0, minute=0, second=0, microsecond=0)
