"""Tokens per second of a model on this machine, on the path users get: LLM.submit, the engine's thread, the listener.

    python bench/decode.py [MODEL] [--rounds N] [section.key=value ...]

Prefill: prompt tokens over the time to the first token. Decode at batch B: tokens of B streams over the time from the
moment all of them have their first to the moment all have their last.
"""

import random
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import cyclopts

from report import publish
from tapwater.cli.common import load, split_overrides
from tapwater.config import load_run
from tapwater.engine import SamplingParams
from tapwater.errors import TapwaterError
from tapwater.llm import LLM, Delta

PREFILL_TOKENS = 512
PROMPT_TOKENS = 32
NEW_TOKENS = 64
BATCHES = (1, 8, 32)

app = cyclopts.App(help=__doc__)


@dataclass
class Stream:
    """When one request's tokens came."""

    times: list[float] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)
    error: TapwaterError | None = None

    def __call__(self, delta: Delta | TapwaterError) -> None:
        if isinstance(delta, TapwaterError):
            self.error = delta
            self.done.set()
            return
        self.times.append(time.perf_counter())
        if delta.finish_reason is not None:
            self.done.set()


def run(llm: LLM, batch: int, prompt_tokens: int, new_tokens: int, chance: random.Random) -> tuple[float, list[Stream]]:
    params = SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True)
    streams = [Stream() for _ in range(batch)]
    prompts = [[chance.randrange(100, llm.config.vocab_size) for _ in range(prompt_tokens)] for _ in streams]
    start = time.perf_counter()
    for prompt, stream in zip(prompts, streams, strict=True):
        llm.submit(prompt, params, (), stream)
    for stream in streams:
        stream.done.wait()
        if stream.error is not None:
            raise stream.error
    return start, streams


def prefill_speed(llm: LLM, chance: random.Random) -> float:
    start, (stream,) = run(llm, 1, PREFILL_TOKENS, 1, chance)
    return PREFILL_TOKENS / (stream.times[0] - start)


def decode_speed(llm: LLM, batch: int, chance: random.Random) -> float:
    _, streams = run(llm, batch, PROMPT_TOKENS, NEW_TOKENS, chance)
    all_started = max(stream.times[0] for stream in streams)
    all_done = max(stream.times[-1] for stream in streams)
    tokens = sum(1 for stream in streams for moment in stream.times if moment > all_started)
    return tokens / (all_done - all_started)


@app.default
def main(model: str = "smollm2-135m-instruct", *overrides: str, rounds: int = 5, config: Path | None = None) -> None:
    """Measure MODEL; the rows of a round run one after another, and rounds repeat, so that drift hits all rows."""
    model, settings = split_overrides(model, overrides)
    llm = load(model, load_run(config, settings))
    chance = random.Random(0)
    figures: dict[str, list[float]] = {}
    try:
        prefill_speed(llm, chance)
        for _ in range(rounds):
            figures.setdefault(f"prefill {PREFILL_TOKENS}", []).append(prefill_speed(llm, chance))
            for batch in BATCHES:
                figures.setdefault(f"decode x{batch}", []).append(decode_speed(llm, batch, chance))
    finally:
        llm.close()
    publish("decode", "tokens/s", figures)


if __name__ == "__main__":
    try:
        app()
    except TapwaterError as error:
        sys.exit(f"error: {error}")
