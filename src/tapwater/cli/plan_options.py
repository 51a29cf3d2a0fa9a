"""What `tapwater plan` is asked, as values: a question can be changed in one place and asked again."""

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from math import ceil
from typing import Any

from tapwater.cli.common import own_machines
from tapwater.config import ModelConfig
from tapwater.config.parse import nearest
from tapwater.cost.candidates import default_formats
from tapwater.cost.formats import Formats
from tapwater.cost.hardware import Machine, Rent, machine
from tapwater.cost.layout import Layout, check_layout, parse_layout
from tapwater.cost.load import Traffic
from tapwater.cost.money import check_decimal, decimal_of
from tapwater.cost.plan import Limits, Plan, node_share, plan, plan_layout
from tapwater.errors import ConfigError

GIVEN = "given on the command line"
MAX_NUMBERS = 100_000
MAX_POINTS = 1_000_000  # of a sweep; a million take some twenty minutes


@dataclass(frozen=True)
class Question:
    """How is `config` best served? Fields are the options of `tapwater plan serve`, None where they were left out."""

    config: ModelConfig
    machine: str
    prompt_tokens: int
    output_tokens: int
    hit_share: float = 0.0
    weights: str | None = None
    head: str | None = None
    cache: str | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    max_nodes: int | None = None
    utilisation: float = 0.7
    layout: str | None = None
    usd_per_hour: str | None = None

    @property
    def node(self) -> Machine:
        return rented(machine(self.machine, own_machines()), self.usd_per_hour)

    @property
    def formats(self) -> Formats:
        return default_formats(self.node, self.weights, self.cache, self.head)

    @property
    def traffic(self) -> Traffic:
        longest, most = self.prompt_tokens + self.output_tokens, self.config.max_position_embeddings
        if longest > most:
            raise ConfigError(f"prompt and output have {longest:,} tokens, the model's context is {most:,}")
        return Traffic(self.prompt_tokens, self.output_tokens, self.hit_share)

    @property
    def limits(self) -> Limits:
        return Limits(self.ttft_s, self.tpot_s, 1 if self.max_nodes is None else self.max_nodes, self.utilisation)

    @property
    def assumed(self) -> list[str]:
        """What nobody said, in words."""
        said = {"weights": self.weights, "cache": self.cache}
        chosen = {"weights": self.formats.weights, "cache": self.formats.cache}
        return [f"{what} in {chosen[what]}" for what, value in said.items() if value is None]

    def answer(self) -> Plan:
        """The plan; ConfigError when there is none."""
        asked = self.config, self.node, self.formats
        if self.layout is None:
            return plan(*asked, self.traffic, self.limits)
        return plan_layout(*asked, self.spread(self.layout), self.traffic, self.limits)

    def check(self) -> None:
        """ConfigError for what no machine makes right: traffic, limits, formats and layout."""
        _ = self.traffic, self.limits, Formats(self.weights or "bf16", self.cache or "bfloat16", self.head)
        if self.layout is not None:
            check_layout(parse_layout(self.layout), self.config)

    def spread(self, layout: str) -> Layout:
        """The layout spelt so; ConfigError when it takes more nodes than were allowed."""
        found = parse_layout(layout)
        nodes = ceil(node_share(found, self.node))
        if self.max_nodes is not None and nodes > self.max_nodes:
            raise ConfigError(
                f"layout {found} takes {nodes} nodes of {self.machine}, --max-nodes allows {self.max_nodes}"
            )
        return found


# How each field of a question is read from text; `config` cannot be changed.
READERS: dict[str, type] = {
    **dict.fromkeys(("machine", "weights", "head", "cache", "layout", "usd_per_hour"), str),
    **dict.fromkeys(("prompt_tokens", "output_tokens", "max_nodes"), int),
    **dict.fromkeys(("hit_share", "ttft_s", "tpot_s", "utilisation"), float),
}


def changed(question: Question, text: str) -> Question:
    """The question with "cache=6bit" or "machine=h100,weights=bf16"; ConfigError names a field or value that is wrong.

    Another machine keeps its own rent and default formats.
    """
    changes: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = part.strip().partition("=")
        name = name.replace("-", "_")
        if name not in READERS:
            raise ConfigError(
                f"--compare {text!r}: nothing named {name!r}{nearest(name, READERS)}; {', '.join(READERS)}"
            )
        if not equals or not value:
            raise ConfigError(f"--compare {text!r}: write {name}=VALUE")
        if name in changes:
            raise ConfigError(f"--compare {text!r}: {name} is there twice")
        try:
            changes[name] = READERS[name](value)
        except ValueError:
            raise ConfigError(f"--compare {text!r}: {value!r} is no {READERS[name].__name__} for {name}") from None
    found = replace(question, **changes)
    try:
        found.check()
        _ = found.node
    except ConfigError as error:
        raise ConfigError(f"--compare {text!r}: {error}") from None
    return found


def rented(node: Machine, usd_per_hour: str | None) -> Machine:
    """The machine at a rent that the user gave."""
    if usd_per_hour is None:
        return node
    amount = decimal_of(usd_per_hour, "--usd-per-hour")
    return replace(node, usd_per_hour=Rent(amount, GIVEN, datetime.now(UTC).date().isoformat()))


def yuan_per_dollar(text: str) -> Decimal:
    """The rate; ConfigError for one that cannot be."""
    rate = decimal_of(text, "--cny-per-usd")
    check_decimal("--cny-per-usd", rate, "above 0", "1000")
    return rate


def numbers_of(text: str, name: str) -> list[int]:
    """Read "1,2,4..64" (doubling) and "100..900+100" (by steps); ConfigError for what is neither or does not rise."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,9})(?:\.\.([0-9]{1,9})(?:\+([0-9]{1,9}))?)?\s*", part)
        if match is None:
            raise ConfigError(f"{name}: {part!r} is none of 8, 4..64 (doubling) and 100..900+100 (by steps)")
        first, last, step = (None if each is None else int(each) for each in match.groups())
        assert first is not None
        if first < 1 or step == 0:
            raise ConfigError(f"{name}: {part!r}: numbers and steps are at least 1")
        last = first if last is None else last
        if last < first or (step and (last - first) // step > MAX_NUMBERS):
            raise ConfigError(f"{name}: {part!r} must rise, by at most {MAX_NUMBERS:,} numbers")
        while first <= last:
            found.append(first)
            first = first + step if step else 2 * first
    if len(set(found)) < len(found):
        raise ConfigError(f"{name}: a number is there twice in {text!r}")
    return sorted(found)
