"""How far predictions are from measurements on this machine: models that gave no rate, through LLM.submit.

    python bench/plan_error.py [--rounds N] [--threads N] [--only NAME] [--earlier MACHINE]

In a round every model is measured once with every cache format, and the machine's rates are taken before and after each
of them: a prediction is from the rates on both sides of what it is compared with. The machine's speed drifts and
neighbours steal time, so medians over all rounds are compared; single rounds are shown beside them. What a user
gets is the column of a machine measured earlier.
"""

import random
import sys
from collections.abc import Mapping
from dataclasses import replace
from statistics import median

import cyclopts
import torch
from rich.console import Console
from rich.table import Table

from measure import decode_speed, prefill_speed
from report import provenance, save
from tapwater.calibration import measure_kernels, random_weights
from tapwater.checkpoint import load_packed
from tapwater.cli.common import DEFAULT_MODEL, locate, own_machines
from tapwater.config import EngineConfig, ModelConfig, preset, replace_fields
from tapwater.cost.formats import Formats
from tapwater.cost.hardware import machine
from tapwater.cost.kernel_rates import KernelRates
from tapwater.cost.throughput import Serving, decode, prefill
from tapwater.llm import LLM, available_cores
from tapwater.model import PackedTransformer
from tapwater.ops.cache_format import CacheFormat
from tapwater.ops.quant import Format
from workloads import BATCHES, PREFILL, PROMPT

NEW = 40
SHIPPED = "smollm2-135m, as shipped"
CACHES = (CacheFormat.BFLOAT16, CacheFormat.Q8)
VOCAB = {"vocab_size": 49152, "bos_token_id": 1, "eos_token_id": 2}  # SmolLM2's tokenizer serves all shapes

app = cyclopts.App(help=__doc__)
out = Console(stderr=True)


def shapes() -> dict[str, tuple[ModelConfig, Formats]]:
    """Published shapes, cut to what fits: none of them gave a rate."""
    lite = replace_fields(preset("deepseek-v2-lite"), VOCAB | {"num_hidden_layers": 8}, "8 layers")
    moe = replace_fields(preset("deepseek-moe-16b"), VOCAB | {"num_hidden_layers": 6}, "6 layers")
    return {
        SHIPPED: (preset("smollm2-135m"), Formats("q4_min", "bfloat16")),
        "deepseek-v2-lite, 8 layers": (lite, Formats("q4", "bfloat16", head="q4")),
        "deepseek-moe-16b, 6 layers": (moe, Formats("q8", "bfloat16")),
    }


@app.default
def main(rounds: int = 5, threads: int = 0, only: str = "", earlier: str = "xeon-2vcpu") -> None:
    """Measure and predict `only` shapes with that in their name; `earlier`: a machine whose rates were taken before."""
    before_rates = machine(earlier, own_machines()).kernels
    if before_rates is None:
        sys.exit(f"error: {earlier} has no measured kernels; name a machine that `tapwater hardware measure` wrote")
    threads = threads or available_cores()
    torch.set_num_threads(1)
    shipped = load_packed(locate(DEFAULT_MODEL), None)
    chosen = {name: shape for name, shape in shapes().items() if only in name}
    if not chosen:
        sys.exit(f"error: no shape with {only!r} in its name; there are {'; '.join(shapes())}")
    weights = {
        name: shipped.weights if name == SHIPPED else random_weights(config, Format(formats.weights))
        for name, (config, formats) in chosen.items()
    }
    pairs: dict[str, list[tuple[float, float]]] = {}
    old: dict[str, float] = {}
    before = measure_kernels(threads, _silent)
    for number in range(rounds):
        for name, (config, formats) in chosen.items():
            for cache in CACHES:
                out.print(f"round {number + 1} of {rounds}: {name}, {cache} cache")
                model = PackedTransformer(config, weights[name], threads, cache)
                settings = EngineConfig(threads=threads, cache_tokens=2**13, cache_dtype=cache.value)
                llm = LLM(model, shipped.tokenizer, settings)
                measured = _measure(llm, random.Random(number))
                llm.close()
                after = measure_kernels(threads, _silent)
                kept = replace(formats, cache=cache.value)
                sides = [_predict(rates, config, kept) for rates in (before, after)]
                before = after
                once = _predict(before_rates, config, kept)
                for workload, rate in measured.items():
                    old[f"{name}, {cache}: {workload}"] = once[workload]
                    predicted = 2 / sum(1 / each[workload] for each in sides)
                    pairs.setdefault(f"{name}, {cache}: {workload}", []).append((rate, predicted))
    _publish(pairs, old, earlier)


def _measure(llm: LLM, chance: random.Random) -> dict[str, float]:
    prefill_speed(llm, PREFILL, chance)  # touches all weights
    speeds = {f"prefill {PREFILL}": median(prefill_speed(llm, PREFILL, chance) for _ in range(3))}
    return speeds | {f"decode x{batch}": decode_speed(llm, batch, PROMPT, NEW, chance) for batch in BATCHES}


def _predict(rates: KernelRates, config: ModelConfig, formats: Formats) -> dict[str, float]:
    here = replace(machine("xeon-2vcpu"), kernels=rates)  # of which the rates alone are used
    serving = Serving(config, here, formats)
    speeds = {f"prefill {PREFILL}": prefill(serving, PREFILL).tokens_per_s}
    return speeds | {f"decode x{batch}": decode(serving, batch, PROMPT + NEW / 2).tokens_per_s for batch in BATCHES}


def _publish(pairs: Mapping[str, list[tuple[float, float]]], old: Mapping[str, float], earlier: str) -> None:
    about = provenance()
    table = Table(
        "workload", title="Predicted against measured", caption="\n".join(f"{k}: {v}" for k, v in about.items())
    )
    for column in ("measured tokens/s", "predicted", "error of medians", f"by {earlier}", "of single rounds"):
        table.add_column(column, justify="right")
    errors: dict[str, list[float]] = {"rates taken around each measurement": [], f"rates of {earlier}": []}
    for name, rounds in pairs.items():
        measured, predicted = (median(each) for each in zip(*rounds, strict=True))
        pair = predicted / measured - 1, old[name] / measured - 1
        for kind, error in zip(errors.values(), pair, strict=True):
            kind.append(abs(error))
        single = ", ".join(f"{guess / rate - 1:+.0%}" for rate, guess in rounds)
        table.add_row(name, f"{measured:.1f}", f"{predicted:.1f}", *(f"{error:+.0%}" for error in pair), single)
    Console().print(table)
    for kind, sizes in errors.items():
        Console().print(f"{kind}: error median {median(sizes):.1%}, worst {max(sizes):.1%} of {len(sizes)} workloads")
    save("plan-error", about | {"measured and predicted tokens/s": pairs})


def _silent(done: int, total: int) -> None:
    """measure_kernels' progress: a round is told as a whole."""


if __name__ == "__main__":
    app()
