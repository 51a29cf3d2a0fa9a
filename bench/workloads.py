"""What a comparison measures, and what it asks of each engine."""

from dataclasses import dataclass
from typing import Protocol

from measure import BenchError
from tapwater.config import ModelConfig

PREFILL, PROMPT, NEW = 512, 128, 64  # tokens
BATCHES = (1, 8, 32)
DEPTHS = (4096, 16384)


@dataclass(frozen=True)
class Workload:
    """`batch` streams with prompts of `prompt` random tokens; then `new` tokens each, timed alone; none: prefill."""

    name: str
    prompt: int
    new: int = 0
    batch: int = 1

    @property
    def is_stream(self) -> bool:
        """One stream that decodes: the workload whose floor is memory bandwidth."""
        return self.batch == 1 and self.new > 0


class NotMeasuredError(BenchError):
    """This engine cannot give a figure for this workload; the comparison goes on without it."""


class Engine(Protocol):
    """`name` is a word, then what tells it from its like; `build` says the version, once it has measured."""

    name: str
    build: str

    def command(self, workload: Workload) -> list[str]:
        """What is run, for the record."""
        ...

    def measure(self, workload: Workload) -> float:
        """Tokens per second; NotMeasuredError or BenchError."""
        ...

    def read_bytes(self, workload: Workload) -> int:
        """Bytes one step of one stream reads: active weights and, half way through the answer, the cache."""
        ...


def offered(config: ModelConfig) -> list[Workload]:
    """Prefill, decode at each batch, decode of one stream after long prompts, as long as the model can."""
    longest = config.max_position_embeddings - NEW
    return [
        Workload(f"prefill {PREFILL}", PREFILL),
        *(Workload(f"decode x{batch}", PROMPT, NEW, batch) for batch in BATCHES),
        *(Workload(f"decode x1 at {depth}", depth, NEW) for depth in sorted({min(d, longest) for d in DEPTHS})),
    ]


def cached_tokens(workload: Workload) -> int:
    """Tokens in the cache half way through the answer."""
    return workload.prompt + workload.new // 2
