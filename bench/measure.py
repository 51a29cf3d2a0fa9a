"""Timing tapwater on the path users get: LLM.submit, the engine's thread, the listener."""

import ctypes
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from tapwater.checkpoint.gguf_header import read_container
from tapwater.config import ModelConfig
from tapwater.engine import SamplingParams
from tapwater.errors import TapwaterError
from tapwater.llm import LLM, Delta
from tapwater.model import PackedTransformer, Transformer
from tapwater.ops.native import Kernels

FIRST_TOKEN = 100  # prompts are drawn from here up: below lie control tokens of many vocabularies
READ_BYTES = 2**29  # far more than caches hold
READ_PASSES = 5


class BenchError(TapwaterError):
    """A measurement that cannot be made as asked."""


@dataclass
class Stream:
    """One request's tokens and when they came."""

    times: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    error: TapwaterError | None = None

    def __call__(self, delta: Delta | TapwaterError) -> None:
        if isinstance(delta, TapwaterError):
            self.error = delta
            self.done.set()
            return
        self.times.append(time.perf_counter())
        self.tokens += delta.token_ids
        if delta.finish_reason is not None:
            self.done.set()


@dataclass(frozen=True)
class Window:
    """The steps in which every stream of a run got one token each, and nothing else was computed."""

    start: float
    stop: float
    steps: int
    batch: int

    @property
    def tokens_per_second(self) -> float:
        return self.steps * self.batch / (self.stop - self.start)

    @property
    def seconds_per_step(self) -> float:
        return (self.stop - self.start) / self.steps


def run(llm: LLM, batch: int, prompt_tokens: int, new_tokens: int, chance: random.Random) -> tuple[float, list[Stream]]:
    """Greedy answers to random prompts, all submitted at once; when they were, and what came."""
    params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
    streams = [Stream() for _ in range(batch)]
    vocab = llm.config.vocab_size
    prompts = [[chance.randrange(FIRST_TOKEN, vocab) for _ in range(prompt_tokens)] for _ in streams]
    start = time.perf_counter()
    for prompt, stream in zip(prompts, streams, strict=True):
        llm.submit(prompt, params, (), stream)
    for stream in streams:
        stream.done.wait()
        if stream.error is not None:
            raise stream.error
    return start, streams


def full_batch(streams: Sequence[Stream]) -> Window:
    """From the step that gave the last stream its first token to the last step before any has finished.

    Told by the times of the stream that began last: steps, unlike moments, are the same for all.
    """
    latest = max(streams, key=lambda stream: stream.times[0])
    stop = min(stream.times[-1] for stream in streams)
    moments = [moment for moment in latest.times if moment <= stop]
    if len(moments) < 2:
        raise BenchError(f"no two steps in which all {len(streams)} requests decode: ask for more new tokens")
    return Window(moments[0], moments[-1], len(moments) - 1, len(streams))


def prefill_speed(llm: LLM, prompt_tokens: int, chance: random.Random) -> float:
    """Prompt tokens per second up to the first token."""
    start, (stream,) = run(llm, 1, prompt_tokens, 1, chance)
    return prompt_tokens / (stream.times[0] - start)


def decode_speed(llm: LLM, batch: int, prompt_tokens: int, new_tokens: int, chance: random.Random) -> float:
    """Tokens per second of all streams together, prompts not counted."""
    _, streams = run(llm, batch, prompt_tokens, new_tokens, chance)
    return full_batch(streams).tokens_per_second


@dataclass(frozen=True)
class Overhead:
    """A decode step, and how much of it was not native calls: scheduling, sampling, text, delivery, binding."""

    step_s: float
    engine_s: float

    @property
    def share(self) -> float:
        return self.engine_s / self.step_s


class TimedLibrary:
    """Stands in for a native library and notes when its functions ran."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.spans: list[tuple[float, float]] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        function = getattr(self._library, name)

        def timed(*args: object) -> int:
            start = time.perf_counter()
            status = function(*args)
            self.spans.append((start, time.perf_counter()))
            return status

        return timed


def engine_overhead(llm: LLM, batch: int, prompt_tokens: int, new_tokens: int, chance: random.Random) -> Overhead:
    """Decode steps with the native calls' own time told apart; BenchError without any. The engine must be idle."""
    model = llm._engine.model
    if not isinstance(model, PackedTransformer):
        raise BenchError("the torch backend makes no native calls to tell the engine's time from")
    kernels, library = model.kernels, model.kernels.library
    timed = TimedLibrary(library)
    kernels.library = timed  # pyrefly: ignore
    try:
        _, streams = run(llm, batch, prompt_tokens, new_tokens, chance)
    finally:
        kernels.library = library
    window = full_batch(streams)
    inside = sum(stop - start for start, stop in timed.spans if window.start <= start and stop <= window.stop)
    return Overhead(window.seconds_per_step, window.seconds_per_step - inside / window.steps)


def memory_bandwidth(threads: int) -> float:
    """Bytes per second that `threads` threads read from memory: the best of several passes."""
    memory = torch.ones(READ_BYTES, dtype=torch.uint8)
    kernels = Kernels(threads)
    passes = [_seconds(lambda: kernels.read(memory)) for _ in range(READ_PASSES)]
    kernels.close()
    return READ_BYTES / min(passes)


def gguf_bytes(gguf: Path, config: ModelConfig) -> int:
    """Bytes of the weights one token is multiplied with: chosen experts, head, all else but the input embedding."""
    total = 0
    for name, tensor in read_container(gguf).tensors.items():
        if "_exps." in name:
            total += tensor.nbytes * config.moe.num_experts_per_tok // config.moe.n_routed_experts
        elif name != "token_embd.weight" or config.tie_word_embeddings:
            total += tensor.nbytes
    return total


def model_bytes(model: Transformer | PackedTransformer) -> int:
    """The same of a loaded model, whose decode does not read `kv_b_key`, the keys' half of expanded attention."""
    config, total = model.config, 0
    if isinstance(model, PackedTransformer):
        arrays = {**model._weights.matrices, **model._weights.tensors}
    else:
        arrays = dict(model.named_parameters())
    for name, array in arrays.items():
        if ".mlp.experts." in name:
            total += array.nbytes * config.moe.num_experts_per_tok // config.moe.n_routed_experts
        elif not name.startswith("mtp.") and not name.endswith(".kv_b_key"):
            total += array.nbytes if name != "embed_tokens.weight" or config.tie_word_embeddings else 0
    return total


def distinct(streams: Sequence[Stream]) -> float:
    """Share of different ones among all tokens the streams got."""
    tokens = [token for stream in streams for token in stream.tokens]
    return len(set(tokens)) / len(tokens)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
