"""Each native kernel beside its reference in torch: how many times faster it is, interleaved in one run.

    python bench/kernels.py [--rounds N] [--threads N]

Products are those of one DeepSeek-V2-Lite expert stack and one SmolLM2 layer; caches are bfloat16, the reference reads
float32. Two more tables say what share of the memory bandwidth measured here a product of one row reaches, and
what a call costs.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import cyclopts
import torch
from torch import Tensor

from measure import memory_bandwidth
from report import publish
from tapwater.ops import native_attention, reference
from tapwater.ops.cache_format import CacheFormat, decode, encode
from tapwater.ops.native import Kernels
from tapwater.ops.quant import Format, quantise, unpack

SHAPES = {"576x576": (576, 576), "1536x576": (1536, 576), "1408x2048": (1408, 2048)}
ROWS = (1, 8, 32, 512)
PAGE = 16

app = cyclopts.App(help=__doc__)
Case = tuple[Callable[[], object], Callable[[], object]]


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def product_cases(kernels: Kernels) -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for name, (outputs, columns) in SHAPES.items():
        for format in Format:
            weight = quantise(torch.randn(outputs, columns), format)
            floats = unpack(weight)
            for rows in ROWS:
                x = torch.randn(rows, columns)
                cases[f"linear {name} {format}, {rows} rows"] = (
                    lambda x=x, weight=weight: kernels.linear(x, weight),
                    lambda x=x, floats=floats: reference.linear(x, floats),
                )
    return cases


def attention_cases(kernels: Kernels) -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for name, queries, contexts in (
        ("1 stream of 4,096", (1,), (4096,)),
        ("32 streams of 128", (1,) * 32, (128,) * 32),
        ("prefill of 512", (512,), (512,)),
    ):
        heads, kv_heads, dim = 9, 3, 64
        pages, floats, table = cache(contexts, (dim,) * 2 * kv_heads)
        q = torch.randn(sum(queries), heads, dim)
        rest = (table, queries, contexts, kv_heads, dim**-0.5)
        cases[f"GQA 9/3 heads of 64, {name}"] = (
            lambda q=q, pages=pages, rest=rest: native_attention.paged_attention(
                kernels, CacheFormat.BFLOAT16, q, pages, *rest
            ),
            lambda q=q, floats=floats, rest=rest: reference.paged_attention(q, floats, *rest),
        )
    for name, queries, contexts in (("1 stream of 4,096", (1,), (4096,)), ("8 streams of 512", (1,) * 8, (512,) * 8)):
        pages, floats, table = cache(contexts, (512, 64))
        q = torch.randn(sum(queries), 16, 576)
        rest = (table, queries, contexts, 512, 192**-0.5)
        cases[f"absorbed MLA, 16 heads, {name}"] = (
            lambda q=q, pages=pages, rest=rest: native_attention.paged_mla_absorb(
                kernels, CacheFormat.BFLOAT16, q, pages, *rest
            ),
            lambda q=q, floats=floats, rest=rest: reference.paged_mla_absorb(q, floats, *rest),
        )
    return cases


def cache(contexts: tuple[int, ...], widths: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Pages of random entries in bfloat16, the same in float32, and the page table."""
    each = -(-max(contexts) // PAGE)
    table = torch.arange(each * len(contexts)).view(len(contexts), each)
    entries = torch.randn(table.numel() * PAGE, sum(widths))
    pages = encode(CacheFormat.BFLOAT16, entries, widths)
    floats = decode(CacheFormat.BFLOAT16, pages, widths)
    return pages.unflatten(0, (-1, PAGE)).contiguous(), floats.unflatten(0, (-1, PAGE)).contiguous(), table


@app.default
def main(rounds: int = 9, threads: int = 2) -> None:
    torch.set_num_threads(threads)
    kernels = Kernels(threads)
    cases = product_cases(kernels) | attention_cases(kernels)
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in cases}
    for _ in range(rounds):
        for name, (native, torch_reference) in cases.items():
            native()  # what lies in caches and which threads are awake is then the same for both
            times[name][0].append(seconds(native))
            torch_reference()
            times[name][1].append(seconds(torch_reference))
    publish(
        "kernels",
        "reference / native",
        {name: [r / n for n, r in zip(*pair, strict=True)] for name, pair in times.items()},
    )
    streams = {}
    for format in Format:
        weight = quantise(torch.randn(16384, 4096), format)  # larger than any cache here
        x = torch.randn(1, 4096)
        kernels.linear(x, weight)
        best = median(seconds(partial(kernels.linear, x, weight)) for _ in range(rounds))
        streams[f"{format}, one row"] = [100 * weight.nbytes / best / memory_bandwidth(threads)]
    publish("kernels-bandwidth", "% of memory bandwidth", streams)
    nothing = torch.empty(1)
    calls = [seconds(partial(kernels.library.tw_read, kernels.runner, nothing.data_ptr(), 0)) for _ in range(1000)]
    publish("kernels-call", "microseconds", {"a native call that reads nothing": [1e6 * call for call in calls]})
    kernels.close()


if __name__ == "__main__":
    app()
