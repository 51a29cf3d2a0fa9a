"""What requests wait at a load: time to first token, time per output token, and the most there can be."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from tapwater.cost.throughput import Estimate, Serving, decode, full_prompts, prefill
from tapwater.errors import ConfigError

TOLERANCE = 1e-6  # of the batch that forms; a settled point is exact to that share
MOST_TRIES = 100  # far more than a step that grows with its batch needs


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
        return min(round(self.hit_share * self.prompt_tokens), self.prompt_tokens - 1)

    @property
    def new_tokens(self) -> int:
        """Tokens of a prompt that are computed."""
        return self.prompt_tokens - self.hit_tokens

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


@dataclass(frozen=True)
class Unit:
    """Devices that serve one kind of traffic, prompts and answers on the same ones."""

    serving: Serving
    traffic: Traffic

    @cached_property
    def started(self) -> Estimate:
        """Prompts at the highest rate: every chunk full."""
        return prefill(self.serving, self.traffic.prompt_tokens, self.traffic.hit_tokens)

    @property
    def prompt_s(self) -> float:
        """Seconds of all devices that one prompt takes."""
        return self.traffic.new_tokens / self.started.tokens_per_s

    def generated(self, batch: float) -> Estimate:
        return decode(self.serving, batch, self.traffic.context)

    def capacity(self, batch: float) -> float:
        """Requests per second when nothing idles and `batch` requests generate: prompts and answers share the time."""
        return 1 / (self.prompt_s + self.traffic.output_tokens / self.generated(batch).tokens_per_s)

    def at_load(self, requests_per_s: float, largest_batch: float) -> Point:
        """The batch that forms, and what a request waits; prompts arrive at random (M/D/1) and are computed in chunks
        beside the running answers, as the engine's scheduler does.

        ConfigError for a load that does not settle below `largest_batch`, naming the most that does.
        """
        most = self.capacity(largest_batch)
        if not 0 < requests_per_s < most:
            layout = self.serving.layout
            raise ConfigError(f"{requests_per_s:.3g} requests/s: layout {layout} carries up to {most:.3g}")
        busy = requests_per_s * self.prompt_s
        waiting_tokens = requests_per_s * self.traffic.output_tokens / (1 - busy)
        # Little's law, with a step as long as it is at that batch
        batch = settle(lambda batch: waiting_tokens * self.generated(batch).step_s, largest_batch)
        generated = self.generated(batch)
        beside_s = generated.step_s * min(1.0, waiting_tokens * generated.step_s)  # at a light load nobody generates
        first_s = self.first_token_s(requests_per_s, busy, beside_s)
        return Point(requests_per_s, batch, first_s, generated.step_s / (1 - busy), self.started, generated)

    def first_token_s(self, requests_per_s: float, busy: float, step_s: float) -> float:
        """Seconds that a prompt waits and is computed while prompts take the share `busy` of the time.

        Those prompts are computed together that arrive while others are: at a light load one, at the most as many as
        fill a chunk. Each of their chunks also waits for the running answers' step."""
        serving, traffic = self.serving, self.traffic
        chunks = -(-traffic.new_tokens // serving.chunk_tokens)

        def service_s(prompts: float) -> float:
            computed = prefill(serving, traffic.prompt_tokens, traffic.hit_tokens, prompts).step_s
            return computed + chunks * step_s

        most = full_prompts(serving, traffic.new_tokens)
        together = settle(lambda prompts: requests_per_s * service_s(prompts), most)
        service = service_s(together)
        return service + busy * service / (2 * (1 - busy))


def settle(formed: Callable[[float], float], largest: float) -> float:
    """The batch from 1 to `largest` that equals what forms at it, 1 if less than one does.

    Regula falsi, Illinois' variant. `formed` must not fall, nor grow faster than in proportion: then there is one.
    """
    low, low_gap = 1.0, 1 - formed(1.0)
    high, high_gap = largest, largest - formed(largest)
    if low_gap >= 0:
        return low
    moved = ""
    for _ in range(MOST_TRIES):
        if high_gap <= 0 or high - low <= TOLERANCE * low:
            break
        middle = (low * high_gap - high * low_gap) / (high_gap - low_gap)
        gap = middle - formed(middle)
        if abs(gap) <= TOLERANCE * middle:
            return middle
        if gap > 0:
            high, high_gap, low_gap = middle, gap, low_gap / (2 if moved == "high" else 1)
        else:
            low, low_gap, high_gap = middle, gap, high_gap / (2 if moved == "low" else 1)
        moved = "high" if gap > 0 else "low"
    return high
