"""Continuous batching over a paged cache: token ids in, token ids out."""

from tapwater.engine.engine import Engine
from tapwater.engine.loop import EngineError, EngineLoop
from tapwater.engine.request import (
    MAX_LOGPROBS,
    FinishReason,
    Request,
    RequestFailure,
    SamplingParams,
    TokenLogprobs,
    TokenOutput,
)

__all__ = [
    "MAX_LOGPROBS",
    "Engine",
    "EngineError",
    "EngineLoop",
    "FinishReason",
    "Request",
    "RequestFailure",
    "SamplingParams",
    "TokenLogprobs",
    "TokenOutput",
]
