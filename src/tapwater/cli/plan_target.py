"""`tapwater plan target`: what load makes a price true."""

import sys
from decimal import Decimal
from typing import TYPE_CHECKING

from tapwater.cli.output import AsJson, write_json
from tapwater.errors import ConfigError

if TYPE_CHECKING:
    from tapwater.cost.target import Target


def target(
    model: str,
    /,
    *,
    machine: str,
    usd_per_million: str | None = None,
    cny_per_million: str | None = None,
    prompt_tokens: int = 1000,
    output_tokens: int = 500,
    weights: str | None = None,
    head: str | None = None,
    cache: str | None = None,
    layout: str | None = None,
    usd_per_hour: str | None = None,
    cny_per_usd: str = "7.2",
    as_json: AsJson = False,
) -> None:
    """Find the load at which a million output tokens cost no more than a price.

    The price is at cost, without margin; prompts are paid for by the price of input.

    Parameters
    ----------
    model
        A preset such as deepseek-v2, a config.json, a model directory, a .gguf file, or a model to pull.
    machine
        A machine of `tapwater hardware list`.
    usd_per_million
        Dollars for a million output tokens; either this or --cny-per-million.
    cny_per_million
        Yuan for them.
    prompt_tokens
        Length of a prompt, which every output token attends to.
    output_tokens
        Length of an answer.
    weights
        Format of weights; without it what suits the machine.
    head
        Format of embedding and head, where it differs.
    cache
        Format of the cache.
    layout
        Devices by axis; without it one device.
    usd_per_hour
        Rent of a node, instead of the catalogue's.
    cny_per_usd
        Yuan for a dollar; 7.2 is an assumption.
    """
    from tapwater.cli.models import model_config
    from tapwater.cli.plan_options import Question, yuan_per_dollar
    from tapwater.cost.candidates import chunk_tokens
    from tapwater.cost.layout import Layout, parse_layout
    from tapwater.cost.memory import largest_batch
    from tapwater.cost.money import decimal_of
    from tapwater.cost.plan import node_share, rent_of
    from tapwater.cost.target import load_for_price
    from tapwater.cost.throughput import Serving

    if (usd_per_million is None) == (cny_per_million is None):
        raise ConfigError("give either --usd-per-million or --cny-per-million: the price that is to be true")
    question = Question(
        model_config(model), machine, prompt_tokens, output_tokens, 0.0, weights, head, cache, usd_per_hour=usd_per_hour
    )
    node, formats, traffic = question.node, question.formats, question.traffic
    if node.usd_per_hour is None:
        raise ConfigError(f"{machine} has no rent; say --usd-per-hour")
    exchange = yuan_per_dollar(cny_per_usd)
    price = decimal_of(usd_per_million, "--usd-per-million") if usd_per_million is not None else Decimal(0)
    if cny_per_million is not None:
        price = decimal_of(cny_per_million, "--cny-per-million") / exchange
    spread = Layout() if layout is None else parse_layout(layout)
    room = largest_batch(question.config, node, spread, context=prompt_tokens + output_tokens, formats=formats)
    if room < 1:
        raise ConfigError(f"{model} in {formats.weights} does not fit {machine} with layout {spread}")
    serving = Serving(question.config, node, formats, spread, chunk_tokens(node))
    hour = rent_of(node.usd_per_hour, node_share(spread, node))
    found = load_for_price(serving, traffic.context, room, hour, price)
    if as_json:
        write_json(target_facts(found, exchange))
        return
    sys.stdout.write(
        f"{model} on {machine}, layout {spread}: weights in {formats.weights}, cache in {formats.cache}, "
        f"{traffic.context:,.0f} tokens cached a request\n{_said(found, exchange)}\n"
    )


def target_facts(found: "Target", exchange: Decimal) -> dict[str, object]:
    """Everything `target` finds, money as strings of dollars."""
    return {
        "usd_per_hour": str(found.hour),
        "usd_per_million": str(found.per_million),
        "cny_per_usd": str(exchange),
        "needed_tokens_per_s": found.needed_tokens_per_s,
        "batch": found.batch,
        "largest_batch": found.largest_batch,
        "most_tokens_per_s": found.most_tokens_per_s,
        "low_tokens_per_s": found.most_low,
        "high_tokens_per_s": found.most_high,
        "utilisation": found.utilisation,
        "highest_usd_per_hour": str(found.highest_hour),
        "extrapolated": list(found.extrapolated),
    }


def _said(found: "Target", exchange: Decimal) -> str:
    price = f"${found.per_million:.4f} (¥{found.per_million * exchange:.2f}) per million output tokens"
    lines = [
        f"an hour of ${found.hour:.4f} pays for {price} at {found.needed_tokens_per_s:,.1f} tokens/s, all of the time",
        f"the most, at {found.largest_batch:,} requests at once, is predicted to be {found.most_tokens_per_s:,.1f} "
        f"({found.most_low:,.1f} to {found.most_high:,.1f})",
    ]
    if found.batch is None:
        lines.append(
            f"no load makes it true; it would be if the hour cost ${found.highest_hour:.4f} "
            f"(¥{found.highest_hour * exchange:.4f}) or less"
        )
    else:
        lines.append(
            f"true from {found.batch:,} requests at once, always; at the most, {found.utilisation:.0%} of the time"
        )
    lines += [f"extrapolated: {reason}" for reason in found.extrapolated]
    return "\n".join(lines)
