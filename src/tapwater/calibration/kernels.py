"""Measures KernelRates: small random models, each of which spends its time on one thing."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch

from tapwater.calibration.probe import Probe
from tapwater.config import EngineConfig, ModelConfig
from tapwater.cost.formats import Formats
from tapwater.cost.kernel_rates import KernelRates
from tapwater.cost.kernels import kernel_seconds
from tapwater.cost.work import Work, decode_work, prefill_work
from tapwater.engine import Engine, EngineLoop, SamplingParams, TokenOutput
from tapwater.errors import TapwaterError
from tapwater.ops.cache_format import CacheFormat
from tapwater.ops.native import instruction_set
from tapwater.ops.quant import Format

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 512)
HEADS = (1, 4, 16, 64)
MANY = 32  # requests at once
SHORT, LONG = 64, 2048  # contexts
CHUNK = 512
NARROW, WIDE = 64, 2048  # hidden sizes
VOCAB = 64
ENGINE_STEPS = 40

Progress = Callable[[int, int], None]


def measure_kernels(threads: int, progress: Progress) -> KernelRates:
    """Rates of the native kernels here; takes well under a minute and 300 MB. Nothing else should run meanwhile."""
    nothing = dict.fromkeys((str(format) for format in Format), (0.0,) * len(ROWS))
    caches = dict.fromkeys((str(format) for format in CacheFormat), (0.0,) * len(HEADS))
    rates = KernelRates(
        **{"instruction_set": instruction_set(), "threads": threads, "max_context": 4 * LONG},
        **{"rows": ROWS, "weight_s": nothing, "heads": HEADS, "grouped_s": caches, "absorbed_s": caches},
        **{"prompt_mac_s": {"grouped": 0.0, "expanded": 0.0}, "attend_s": 0.0, "row_s": 0.0, "layer_s": 0.0},
        **{"expert_s": 0.0, "logit_s": 0.0, "step_s": 0.0, "request_s": 0.0},
    )
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the engine does: torch's threads would take the kernels' cores
    # Each measurement takes off what those before it explain.
    stages = (_layers, *(_Weights(format) for format in Format), _rows, _grouped, _absorbed, _experts, _logits, _engine)
    for done, stage in enumerate(stages):
        progress(done, len(stages))
        rates = stage(rates)
    torch.set_num_threads(before)
    progress(len(stages), len(stages))
    return rates


def _layers(rates: KernelRates) -> KernelRates:
    few, many = (_probe(rates, llama(NARROW, NARROW, layers, 1, 1)) for layers in (4, 36))
    one, all = ((many.decode(batch, 1, 25) - few.decode(batch, 1, 25)) / 32 for batch in (1, MANY))
    few.close()
    many.close()
    attend = max(0.0, (all - one) / (MANY - 1))
    return replace(rates, layer_s=max(0.0, one - attend), attend_s=attend)


class _Weights:
    """Products with one format: four layers larger than any cache."""

    def __init__(self, format: Format) -> None:
        self._format = format

    def __call__(self, rates: KernelRates) -> KernelRates:
        config = llama(WIDE, 5632, 2 if self._format is Format.BF16 else 4, 16, 16)
        probe = _probe(rates, config, self._format)
        times = []
        for rows in ROWS:
            if rows <= MANY:
                work, seconds = decode_work(config, rows, 1), probe.decode(rows, 1, 5)
            else:
                work, seconds = prefill_work(config, rows), probe.prefill(rows, 0, 1)
            rest = seconds - _explained(rates, config, work, str(self._format))
            times.append(rest / sum(product.weights * product.count for product in work.products))
        probe.close()
        return replace(rates, weight_s={**rates.weight_s, str(self._format): tuple(times)})


def _rows(rates: KernelRates) -> KernelRates:
    config = llama(WIDE, NARROW, 4, 1, 1)
    probe = _probe(rates, config)
    rest = probe.prefill(CHUNK, 0, 3) - _explained(rates, config, prefill_work(config, CHUNK))
    probe.close()
    return replace(rates, row_s=max(0.0, rest / (CHUNK * WIDE * config.num_hidden_layers)))


def _grouped(rates: KernelRates) -> KernelRates:
    rates = replace(rates, grouped_s=_decode_attention(rates, lambda heads: llama(NARROW, NARROW, 2, 2 * heads, 2)))
    return _prompt_attention(rates, llama(NARROW, NARROW, 2, 16, 4), "grouped")


def _absorbed(rates: KernelRates) -> KernelRates:
    rates = replace(rates, absorbed_s=_decode_attention(rates, latent))
    return _prompt_attention(rates, latent(16), "expanded")


def _decode_attention(rates: KernelRates, shape: Callable[[int], ModelConfig]) -> dict[str, tuple[float, ...]]:
    """Seconds per cached number for each format and number of heads that share it."""
    found = {}
    for cache in CacheFormat:
        times = []
        for heads in HEADS:
            config = shape(heads)
            probe = _probe(rates, config, cache=cache)
            rest = probe.decode(4, LONG, 3) - _explained(rates, config, decode_work(config, 4, LONG), cache=cache)
            probe.close()
            times.append(max(0.0, rest) / (4 * LONG * config.kv_elements_per_token))
        found[str(cache)] = tuple(times)
    return found


def _prompt_attention(rates: KernelRates, config: ModelConfig, form: str) -> KernelRates:
    probe = _probe(rates, config)
    long, short = (probe.prefill(CHUNK, cached, 2) for cached in (LONG - CHUNK, 0))
    probe.close()
    works = [prefill_work(config, CHUNK, cached) for cached in (LONG - CHUNK, 0)]
    explained = [_explained(rates, config, work) for work in works]
    rest = long - short - (explained[0] - explained[1])
    seconds = rest / (works[0].attention.macs - works[1].attention.macs)
    return replace(rates, prompt_mac_s={**rates.prompt_mac_s, form: seconds})


def _experts(rates: KernelRates) -> KernelRates:
    moe = {
        "n_routed_experts": 64,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": NARROW,
        "first_k_dense_replace": 0,
    }
    config = replace(llama(NARROW, NARROW, 4, 1, 1), model_type="deepseek", **moe)
    probe = _probe(rates, config)
    work = decode_work(config, MANY, 1)
    rest = probe.decode(MANY, 1, 15) - _explained(rates, config, work)
    probe.close()
    return replace(rates, expert_s=max(0.0, rest / work.touched))


def _logits(rates: KernelRates) -> KernelRates:
    config = replace(llama(NARROW, NARROW, 1, 1, 1), vocab_size=2**16)
    probe = _probe(rates, config)
    rest = probe.decode(MANY, 1, 9) - _explained(rates, config, decode_work(config, MANY, 1))
    probe.close()
    return replace(rates, logit_s=max(0.0, rest / (MANY * config.vocab_size)))


def _engine(rates: KernelRates) -> KernelRates:
    """Scheduling, sampling and delivery: what a step of the engine's thread takes beyond the model's."""
    config = llama(NARROW, NARROW, 2, 1, 1)
    probe = _probe(rates, config)
    settings = EngineConfig(cache_tokens=2 * MANY * (SHORT + ENGINE_STEPS))
    loop = EngineLoop(Engine(probe.model, settings, ()), 1)
    beyond = []
    for batch in (1, MANY):
        alone = probe.decode(batch, SHORT, 15)
        beyond.append(max(0.0, _engine_step(loop, batch) - alone))
    loop.close(0.0)
    probe.close()
    request = max(0.0, (beyond[1] - beyond[0]) / (MANY - 1))
    return replace(rates, request_s=request, step_s=max(0.0, beyond[0] - request))


def _engine_step(loop: EngineLoop, batch: int) -> float:
    """Seconds of a step of `batch` requests, from the first in which all generate to the last."""
    times: list[list[float]] = [[] for _ in range(batch)]
    faults: list[TapwaterError] = []
    params = SamplingParams(temperature=0, max_tokens=ENGINE_STEPS, ignore_eos=True)
    for each in times:
        prompt = torch.randint(2, VOCAB, (SHORT // 4,)).tolist()

        def listener(output: TokenOutput | TapwaterError, each: list[float] = each) -> None:
            faults.append(output) if isinstance(output, TapwaterError) else each.append(time.perf_counter())

        loop.submit(loop.engine.create(prompt, params), listener)
    while any(len(each) < ENGINE_STEPS for each in times) and not faults:
        time.sleep(0.002)
    if faults:
        raise faults[0]
    start, stop = max(each[0] for each in times), min(each[-1] for each in times)
    return (stop - start) / sum(start < moment <= stop for moment in times[-1])


def _probe(
    rates: KernelRates, config: ModelConfig, format: Format = Format.Q4, cache: CacheFormat = CacheFormat.BFLOAT16
) -> Probe:
    return Probe(config, format, rates.threads, cache)


def _explained(
    rates: KernelRates, config: ModelConfig, work: Work, weights: str = "q4", cache: str = "bfloat16"
) -> float:
    return sum(kernel_seconds(rates, config, work, Formats(weights, cache, head=weights)).values())


def llama(hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> ModelConfig:
    """A dense model with heads of 64."""
    return ModelConfig(
        model_type="llama",
        vocab_size=VOCAB,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        max_position_embeddings=4 * LONG,
    )


def latent(heads: int) -> ModelConfig:
    """A narrow dense model with DeepSeek-V2's latent attention."""
    return ModelConfig(
        model_type="deepseek_v2",
        vocab_size=VOCAB,
        hidden_size=NARROW,
        intermediate_size=NARROW,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4 * LONG,
        kv_lora_rank=512,
        qk_nope_head_dim=128,
        qk_rope_head_dim=64,
        v_head_dim=128,
    )
