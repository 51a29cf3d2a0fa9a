"""The facade: text in, text out, over tokenizer and engine."""

import logging
import os
import queue
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from tapwater.checkpoint import Progress, load_model, load_packed
from tapwater.config import EngineConfig, ModelConfig
from tapwater.engine import (
    Engine,
    EngineLoop,
    FinishReason,
    Request,
    SamplingParams,
    TokenLogprobs,
    TokenOutput,
)
from tapwater.errors import TapwaterError
from tapwater.model import PackedTransformer, Transformer
from tapwater.ops.cache_format import CacheFormat
from tapwater.ops.native import instruction_set, is_built
from tapwater.ops.quant import Format
from tapwater.text import IncrementalDetokenizer, StopStrings, Tokenizer

PACKED_FORMATS = {"stored": None, "bfloat16": Format.BF16, "q8": Format.Q8, "q4": Format.Q4_MIN}
CACHE_FORMATS = {
    "auto": CacheFormat.BFLOAT16,
    "float32": CacheFormat.FLOAT32,
    "bfloat16": CacheFormat.BFLOAT16,
    "q8": CacheFormat.Q8,
    "q6": CacheFormat.Q6,
}

CGROUP = Path("/sys/fs/cgroup")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Usage:
    """Tokens of one request; `cached_tokens` of the prompt were not computed again."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True)
class TextLogprob:
    token: str
    token_bytes: bytes
    token_id: int
    logprob: float


@dataclass(frozen=True)
class TokenText:
    """A generated token, the likeliest alternatives, best first, and where in the text of the answer it begins."""

    chosen: TextLogprob
    top: tuple[TextLogprob, ...]
    start: int


@dataclass(frozen=True)
class Delta:
    """A step of an answer: new text (often none: half characters and possible stop strings are held back), the new
    token's id, logprobs of the tokens whose text is out, usage so far; `finish_reason` on the last."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenText, ...]
    finish_reason: FinishReason | None
    usage: Usage


@dataclass(frozen=True)
class Completion:
    """A whole answer; `text` ends before the stop string, `token_ids` are all that were generated."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenText, ...]
    finish_reason: FinishReason
    usage: Usage


def available_cores() -> int:
    """Cores this process may use: fewer than the machine has under taskset or in a container with a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, int(cpu_quota(CGROUP) or cores)))


def cpu_quota(cgroup: Path) -> float | None:
    """Cores' worth of time that a Linux control group (version 2, else 1) allows; None without a limit."""
    files = [cgroup / "cpu.max"], [cgroup / "cpu/cpu.cfs_quota_us", cgroup / "cpu/cpu.cfs_period_us"]
    for paths in files:
        if all(path.is_file() for path in paths):
            quota, period = " ".join(path.read_text() for path in paths).split()
            return None if quota in ("max", "-1") else int(quota) / int(period)
    return None


DeltaListener = Callable[[Delta | TapwaterError], None]


class Generation:
    """A running request."""

    def __init__(self, loop: EngineLoop, request: Request) -> None:
        self._loop = loop
        self._request = request

    def abort(self) -> None:
        """End it soon, from any thread, as often as wanted; one that has finished stays as it is."""
        self._loop.abort(self._request)


class LLM:
    """A model ready to answer; safe to use from several threads, whose requests are computed together."""

    def __init__(self, model: Transformer | PackedTransformer, tokenizer: Tokenizer, engine: EngineConfig) -> None:
        self.tokenizer = tokenizer
        self._model = model
        self.config: ModelConfig = model.config
        end_tokens = {*tokenizer.eos_token_ids, *model.config.eos_token_ids}
        self._engine = Engine(model, engine, sorted(end_tokens))
        # a packed model has threads of its own: torch's would only take their cores
        torch_threads = 1 if isinstance(model, PackedTransformer) else engine.threads or available_cores()
        self._loop = EngineLoop(self._engine, torch_threads)

    @classmethod
    def load(cls, path: Path, engine: EngineConfig, *, progress: Progress | None = None) -> "LLM":
        """The model of a GGUF file, a Hugging Face or packed directory; `progress(done, total)` counts tensors."""
        if engine.backend == "auto" and not engine.is_torch and not is_built():
            log.warning(
                "The native kernels are not built here, for want of a C++ compiler or because it failed: torch "
                "computes instead, several times slower. Install a compiler, then tapwater again (pip install -v "
                "shows the build)."
            )
            engine = replace(engine, backend="torch")
        if engine.is_torch:
            loaded = load_model(path, getattr(torch, engine.torch_dtype), progress)
            return cls(loaded.model, loaded.tokenizer, engine)
        packed = load_packed(path, PACKED_FORMATS[engine.dtype], progress)
        for note in packed.notes:
            log.warning("%s: %s", path, note)  # weights that are not what the file holds: said, not buried
        threads = engine.threads or available_cores()
        model = PackedTransformer(packed.config, packed.weights, threads, CACHE_FORMATS[engine.cache_dtype])
        return cls(model, packed.tokenizer, engine)

    @property
    def computed_by(self) -> str:
        """What computes, for people to read."""
        if isinstance(self._model, PackedTransformer):
            return f"native kernels ({instruction_set()}, {self._model.kernels.threads} threads)"
        return f"torch ({str(self._model.embed_tokens.weight.dtype).removeprefix('torch.')})"

    @property
    def max_context(self) -> int:
        """Tokens a prompt and its answer may have together."""
        return self._engine.max_context

    @property
    def num_running(self) -> int:
        return self._loop.num_running

    @property
    def num_waiting(self) -> int:
        return self._loop.num_waiting

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The prompt of a conversation, by the model's own chat template, ready for the assistant's turn."""
        return self.tokenizer.encode_chat(messages)

    def encode_infill(self, prefix: str, suffix: str, *, suffix_first: bool = False) -> list[int]:
        """The prompt whose answer stands between two texts; RequestError for a model that has no such prompts."""
        return self.tokenizer.encode_infill(prefix, suffix, suffix_first=suffix_first)

    def submit(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, stop: Sequence[str], listener: DeltaListener
    ) -> Generation:
        """Start a request; `listener` hears each Delta, or the error that ended it, in the engine's thread.

        Raises RequestError at once for a request that cannot be honoured.
        """
        request = self._engine.create(prompt_token_ids, params)
        self._loop.submit(request, _TextListener(self._engine, self.tokenizer, request, stop, listener))
        return Generation(self._loop, request)

    def stream(
        self, prompt: str | Sequence[int], params: SamplingParams, stop: Sequence[str] = ()
    ) -> Generator[Delta, None, None]:
        """Deltas as they come; closing the iterator aborts the request."""
        heard: queue.SimpleQueue[Delta | TapwaterError] = queue.SimpleQueue()
        generation = self.submit(self._token_ids(prompt), params, stop, heard.put)
        try:
            while True:
                delta = heard.get()
                if isinstance(delta, TapwaterError):
                    raise delta
                yield delta
                if delta.finish_reason is not None:
                    return
        finally:
            generation.abort()

    def generate(
        self, prompts: Sequence[str | Sequence[int]], params: SamplingParams, stop: Sequence[str] = ()
    ) -> list[Completion]:
        """Answers to all prompts, computed together, in the order of the prompts."""
        streams: list[queue.SimpleQueue[Delta | TapwaterError]] = [queue.SimpleQueue() for _ in prompts]
        generations: list[Generation] = []
        try:
            for prompt, heard in zip(prompts, streams, strict=True):
                generations.append(self.submit(self._token_ids(prompt), params, stop, heard.put))
            return [_collect(heard) for heard in streams]
        finally:
            for generation in generations:
                generation.abort()

    def close(self, drain_s: float = 0.0) -> None:
        """Admit nothing more, let running requests finish for `drain_s` seconds, abort the rest."""
        self._loop.close(drain_s)
        if isinstance(self._model, PackedTransformer):
            self._model.close()

    def _token_ids(self, prompt: str | Sequence[int]) -> Sequence[int]:
        return self.encode(prompt) if isinstance(prompt, str) else prompt


def _collect(heard: "queue.SimpleQueue[Delta | TapwaterError]") -> Completion:
    deltas: list[Delta] = []
    while not deltas or deltas[-1].finish_reason is None:
        delta = heard.get()
        if isinstance(delta, TapwaterError):
            raise delta
        deltas.append(delta)
    return joined(deltas)


def joined(deltas: Sequence[Delta]) -> Completion:
    """The whole answer that a finished stream of deltas makes."""
    last = deltas[-1]
    assert last.finish_reason is not None
    return Completion(
        text="".join(delta.text for delta in deltas),
        token_ids=tuple(token for delta in deltas for token in delta.token_ids),
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
        finish_reason=last.finish_reason,
        usage=last.usage,
    )


class _TextListener:
    """Turns one request's tokens into text in the engine's thread, so that a stop string ends it with no token more."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer, request: Request, stop: Sequence[str], listener: DeltaListener
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._request = request
        self._listener = listener
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._stops = StopStrings(stop)
        self._seen_chars = 0  # characters of all tokens so far
        self._shown_chars = 0  # characters given out
        # logprobs of tokens whose text is not all out, each with the character it starts at and the one after its end
        self._held: list[tuple[int, int, TokenText]] = []

    def __call__(self, output: TokenOutput | TapwaterError) -> None:
        if isinstance(output, TapwaterError):
            self._listener(output)
            return
        is_end = self._engine.is_end_token(output.token_id, self._request.params)
        piece = "" if is_end else self._detokenizer.push(output.token_id)
        text, stopped = self._stops.push(piece)
        reason = output.finish_reason
        if reason is not None and not stopped:
            more, stopped = self._stops.push(self._detokenizer.flush())
            text += more if stopped else more + self._stops.flush()
        if stopped:
            reason = FinishReason.STOP
            self._engine.finish(self._request, reason)
        self._shown_chars += len(text)
        if output.logprobs is not None and not is_end:
            start = self._seen_chars
            self._held.append((start, start + len(piece), self._entry(output.logprobs, start)))
        self._seen_chars += len(piece)
        usage = Usage(len(self._request.prompt_token_ids), len(self._request.output_token_ids), 0)
        self._listener(Delta(text, (output.token_id,), self._released(reason, stopped), reason, usage))

    def _released(self, reason: FinishReason | None, stopped: bool) -> tuple[TokenText, ...]:
        """Entries of tokens whose text is out; at a stop string those it cut through too, at another end all."""
        if not self._held:
            return ()
        if reason is not None and not stopped:
            released = self._held
        elif stopped:
            released = [held for held in self._held if held[0] < self._shown_chars]
        else:
            released = [held for held in self._held if held[1] <= self._shown_chars]
            self._held = self._held[len(released) :]
        return tuple(entry for _, _, entry in released)

    def _entry(self, logprobs: TokenLogprobs, start: int) -> TokenText:
        chosen = self._text_logprob(logprobs.token_id, logprobs.logprob)
        return TokenText(chosen, tuple(self._text_logprob(token, value) for token, value in logprobs.top), start)

    def _text_logprob(self, token_id: int, logprob: float) -> TextLogprob:
        tokenizer = self._tokenizer
        return TextLogprob(tokenizer.token_text(token_id), tokenizer.token_bytes(token_id), token_id, logprob)
