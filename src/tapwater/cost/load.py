"""What requests wait at a load: time to first token, time per output token, and the most there can be."""

from dataclasses import dataclass

from tapwater.cost.throughput import Estimate, Serving, decode, prefill
from tapwater.errors import ConfigError

STEPS_TO_SETTLE = 60  # each halves what is left of the interval


@dataclass(frozen=True)
class Traffic:
    """Requests as they come: `hit_share` of every prompt is found in the context cache."""

    prompt_tokens: int
    output_tokens: int
    hit_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "output_tokens"):
            if not 1 <= getattr(self, name) <= 10**9:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.hit_share < 1:
            raise ConfigError(f"hit_share is a share from 0 to below 1, got {self.hit_share}: 56.3% is 0.563")

    @property
    def hit_tokens(self) -> int:
        """Cached tokens of a prompt; at least its last token is computed."""
        return min(int(self.hit_share * self.prompt_tokens), self.prompt_tokens - 1)

    @property
    def context(self) -> float:
        """Cached tokens of a request half way through its answer."""
        return self.prompt_tokens + self.output_tokens / 2


@dataclass(frozen=True)
class Point:
    """A server under load: `batch` requests generate at once, a request waits `ttft_s`, then `tpot_s` a token."""

    requests_per_s: float
    batch: float
    ttft_s: float
    tpot_s: float
    prefill: Estimate
    decode: Estimate


def capacity(serving: Serving, traffic: Traffic, batch: float) -> float:
    """Requests per second when nothing idles and `batch` requests generate: prompts and answers share the time."""
    started, generated = _prompt(serving, traffic), decode(serving, batch, traffic.context)
    return 1 / (_prompt_s(started, traffic) + traffic.output_tokens / generated.tokens_per_s)


def at_load(serving: Serving, traffic: Traffic, requests_per_s: float, largest_batch: float) -> Point:
    """The batch that forms, and what a request waits; prompts arrive at random (M/D/1) and are computed in chunks
    beside the running answers, as the engine's scheduler does.

    ConfigError for a load that does not settle below `largest_batch`, naming the most that does.
    """
    started = _prompt(serving, traffic)
    busy = requests_per_s * _prompt_s(started, traffic)
    most = capacity(serving, traffic, largest_batch)
    if requests_per_s >= most:
        raise ConfigError(f"{requests_per_s:.3g} requests/s are more than the {most:.3g} that {serving.layout} carries")

    def formed(batch: float) -> float:
        """By Little's law, with a step as long as it is at `batch`."""
        return requests_per_s * traffic.output_tokens * decode(serving, batch, traffic.context).step_s / (1 - busy)

    low, high = 0.0, largest_batch
    for _ in range(STEPS_TO_SETTLE):
        middle = (low + high) / 2
        low, high = (middle, high) if formed(middle) > middle else (low, middle)
    batch = max(high, 1.0)
    generated = decode(serving, batch, traffic.context)
    chunks = -(-(traffic.prompt_tokens - traffic.hit_tokens) // serving.chunk_tokens)
    service = started.step_s + chunks * generated.step_s
    share = min(busy, 0.999999)
    waiting = share * service / (2 * (1 - share))
    return Point(requests_per_s, batch, waiting + service, generated.step_s / (1 - busy), started, generated)


def _prompt(serving: Serving, traffic: Traffic) -> Estimate:
    return prefill(serving, traffic.prompt_tokens, traffic.hit_tokens)


def _prompt_s(started: Estimate, traffic: Traffic) -> float:
    """Seconds of all devices that one prompt takes."""
    return (traffic.prompt_tokens - traffic.hit_tokens) / started.tokens_per_s
