"""tapwater as one of the engines of a comparison."""

import random
from statistics import median

from measure import BenchError, Overhead, distinct, engine_overhead, full_batch, model_bytes, prefill_speed, run
from report import commit
from tapwater.config import EngineConfig
from tapwater.llm import LLM
from tapwater.model import PackedTransformer
from tapwater.ops.native import instruction_set
from workloads import PREFILL, PROMPT, Workload, cached_tokens


class Tapwater:
    """A loaded LLM; `arguments` are what it was told on the command line."""

    def __init__(self, llm: LLM, settings: EngineConfig, arguments: list[str]) -> None:
        self.name = "tapwater"
        kernels = instruction_set() if isinstance(llm._engine.model, PackedTransformer) else "torch"
        self.build = f"{commit()} ({kernels})"
        self._different_tokens: dict[str, list[float]] = {}
        self._llm = llm
        self._settings = settings
        self._arguments = arguments
        self._chance = random.Random(0)

    def check(self, workload: Workload) -> None:
        """BenchError if the engine's settings keep the streams from decoding together."""
        tokens = workload.batch * (workload.prompt + workload.new)
        if workload.batch > self._settings.max_requests:
            raise BenchError(f"{workload.name}: engine.max_requests is {self._settings.max_requests}")
        if tokens > self._settings.cache_tokens or workload.prompt + workload.new > self._llm.max_context:
            raise BenchError(f"{workload.name} holds {tokens} tokens: raise engine.cache_tokens or engine.max_context")

    def warm_up(self) -> None:
        """Touch all weights and the code once, long and short."""
        prefill_speed(self._llm, PREFILL, self._chance)
        run(self._llm, 1, PROMPT, 2, self._chance)

    def command(self, workload: Workload) -> list[str]:
        return ["LLM.submit", *self._arguments]

    def measure(self, workload: Workload) -> float:
        if workload.new == 0:
            return prefill_speed(self._llm, workload.prompt, self._chance)
        _, streams = run(self._llm, workload.batch, workload.prompt, workload.new, self._chance)
        self._different_tokens.setdefault(workload.name, []).append(distinct(streams))
        return full_batch(streams).tokens_per_second

    @property
    def is_native(self) -> bool:
        return isinstance(self._llm._engine.model, PackedTransformer)

    def overhead(self, workload: Workload) -> Overhead:
        return engine_overhead(self._llm, workload.batch, workload.prompt, workload.new, self._chance)

    def notes(self) -> list[str]:
        """How varied the tokens were: those that are the same choose the same experts, whose weights are read once."""
        return [
            f"{workload}: {median(shares):.0%} of tapwater's tokens were different ones"
            for workload, shares in self._different_tokens.items()
            if self._llm.config.is_moe
        ]

    def read_bytes(self, workload: Workload) -> int:
        pages = self._llm._engine.cache.pages_LPSX
        slots = pages.shape[1] * pages.shape[2]
        return model_bytes(self._llm._engine.model) + pages.nbytes // slots * cached_tokens(workload)
