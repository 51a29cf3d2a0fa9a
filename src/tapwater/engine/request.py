"""What the engine is asked for, what it answers, and a request's life between the two."""

import enum
import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from tapwater.errors import RequestError

MAX_LOGPROBS = 20

# Field to type, least and greatest value
LIMITS = {
    "max_tokens": (int, 1, math.inf),
    "temperature": (int | float, 0, 100),
    "top_k": (int, 0, math.inf),
    "top_p": (int | float, 0, 1),
    "min_p": (int | float, 0, 1),
    "seed": (int, -(2**63), 2**63 - 1),
    "repetition_penalty": (int | float, 1e-3, 1e3),
    "presence_penalty": (int | float, -2, 2),
    "frequency_penalty": (int | float, -2, 2),
    "logprobs": (int, 0, MAX_LOGPROBS),
}
OPTIONAL = ("max_tokens", "seed", "logprobs")


class FinishReason(enum.StrEnum):
    """Why a request ended."""

    STOP = "stop"  # an end token, a stop token, or a stop string found by the caller
    LENGTH = "length"  # max_tokens, or the end of the context
    ABORT = "abort"  # the caller withdrew it


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen; RequestError names a field that is out of range.

    The order is: logit_bias, penalties, temperature, top_k, top_p, min_p, draw. Logprobs are those of the model's own
    distribution, before all of these.
    """

    max_tokens: int | None = None  # None: as many as the context holds
    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None  # None: a fresh one per request
    repetition_penalty: float = 1.0  # divides positive, multiplies negative logits of tokens seen in prompt or output
    presence_penalty: float = 0.0  # subtracted once from tokens seen in the output
    frequency_penalty: float = 0.0  # subtracted per occurrence in the output
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None  # None: none; n: the chosen token's and the n best
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        for name, (kind, low, high) in LIMITS.items():
            value = getattr(self, name)
            if value is None and name in OPTIONAL:
                continue
            # a bool is an int to Python, never to a caller; NaN fails every comparison
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
                number = "an integer" if kind is int else "a number"
                allowed = f"of at least {low}" if high == math.inf else f"between {low} and {high}"
                raise RequestError(f"{name} must be {number} {allowed}, got {value!r}", param=name)
        if self.top_p == 0:
            raise RequestError("top_p must be above 0, got 0", param="top_p")
        if not isinstance(self.ignore_eos, bool):
            raise RequestError(f"ignore_eos must be true or false, got {self.ignore_eos!r}", param="ignore_eos")
        if not isinstance(self.stop_token_ids, tuple) or not all(type(token) is int for token in self.stop_token_ids):
            raise RequestError("stop_token_ids must be a tuple of token ids", param="stop_token_ids")
        if not isinstance(self.logit_bias, Mapping):
            raise RequestError(f"logit_bias must map token ids to numbers, got {self.logit_bias!r}", param="logit_bias")
        for token, bias in self.logit_bias.items():
            is_number = isinstance(bias, int | float) and not isinstance(bias, bool)
            if type(token) is not int or token < 0 or not is_number or not -100 <= bias <= 100:
                raise RequestError(
                    f"logit_bias: {bias!r} of token {token!r} is not a number in -100..100 of a token id",
                    param="logit_bias",
                )


@dataclass(frozen=True)
class TokenLogprobs:
    """Natural-log probabilities of one sampled token and of the most likely alternatives, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class TokenOutput:
    """One token of one request; `finish_reason` is set on the last."""

    request_id: int
    token_id: int
    logprobs: TokenLogprobs | None
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class RequestFailure:
    """A request the engine had to end by itself, and why; the others go on."""

    request_id: int
    message: str


@dataclass(eq=False)
class Request:
    """A request's state. Invariant: the cache holds exactly its first `num_computed_tokens` tokens, in `pages`.

    `num_tokens` counts prompt and output. The scheduler's one job is to let `num_computed_tokens` catch up with it.
    """

    request_id: int
    prompt_token_ids: list[int]
    params: SamplingParams
    max_total_tokens: int  # prompt and output together never exceed this
    generator: torch.Generator
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    pages: "array[int]" = field(default_factory=lambda: array("q"))
    finish_reason: FinishReason | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids at positions start..stop-1, across the border between prompt and output."""
        prompt = len(self.prompt_token_ids)
        return self.prompt_token_ids[start:stop] + self.output_token_ids[max(0, start - prompt) : max(0, stop - prompt)]
