"""What the engine is asked for, what it answers, and a request's life between the two."""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from tapwater.errors import RequestError

MAX_LOGPROBS = 20


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
        bounds = {
            "max_tokens": (1, math.inf),
            "temperature": (0, 100),
            "top_k": (0, math.inf),
            "min_p": (0, 1),
            "repetition_penalty": (1e-3, 1e3),
            "presence_penalty": (-2, 2),
            "frequency_penalty": (-2, 2),
            "logprobs": (0, MAX_LOGPROBS),
            "seed": (-(2**63), 2**63 - 1),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                allowed = f"at least {low}" if high == math.inf else f"between {low} and {high}"
                raise RequestError(f"{name} must be {allowed}, got {value}", param=name)
        if not 0 < self.top_p <= 1:
            raise RequestError(f"top_p must be above 0 and at most 1, got {self.top_p}", param="top_p")
        for token, bias in self.logit_bias.items():
            if token < 0 or not -100 <= bias <= 100:
                raise RequestError(f"logit_bias {bias} of token {token} is not in -100..100", param="logit_bias")


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
    pages: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids at positions start..stop-1, across the border between prompt and output."""
        prompt = len(self.prompt_token_ids)
        return self.prompt_token_ids[start:stop] + self.output_token_ids[max(0, start - prompt) : max(0, stop - prompt)]
