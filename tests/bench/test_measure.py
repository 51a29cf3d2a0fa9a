"""Windows over streams, the engine's share of a step, and what a token reads."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from make_random import write
from measure import (
    BenchError,
    Stream,
    decode_speed,
    distinct,
    engine_overhead,
    full_batch,
    gguf_bytes,
    memory_bandwidth,
    model_bytes,
    prefill_speed,
    run,
)
from random_model import SHAPE
from tapwater.checkpoint import load_config, load_model
from tapwater.config import EngineConfig, replace_fields
from tapwater.cost.counts import parameters
from tapwater.llm import LLM


def streams(*times: list[float]) -> list[Stream]:
    return [Stream(times=list(each), tokens=[0] * len(each)) for each in times]


def test_one_stream_counts_every_step_after_its_first_token() -> None:
    window = full_batch(streams([1.0, 1.5, 2.0, 2.5]))
    assert (window.start, window.stop, window.steps) == (1.0, 2.5, 3)
    assert window.tokens_per_second == 2.0
    assert window.seconds_per_step == 0.5


def test_only_steps_with_all_streams_count() -> None:
    # the first stream begins two steps earlier and so ends two steps earlier; steps of three seconds
    first, last = [1.0, 4.0, 7.0, 10.0, 13.0], [7.1, 10.1, 13.1, 16.1, 19.1]
    window = full_batch(streams(first, last))
    assert (window.start, window.stop, window.steps) == (7.1, 10.1, 1)
    assert window.tokens_per_second == pytest.approx(2 / 3)


def test_streams_that_never_decode_together_are_an_error() -> None:
    with pytest.raises(BenchError, match="all 2 requests"):
        full_batch(streams([1.0, 2.0], [2.1, 3.1]))


def test_distinct_is_the_share_of_different_tokens() -> None:
    assert distinct([Stream(tokens=[1, 2]), Stream(tokens=[2, 2])]) == 0.5


@pytest.fixture(scope="module")
def random_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("random") / "random.gguf"
    for _ in write(path, SHAPE, "q8_0", seed=0):
        pass
    return path


@pytest.fixture(scope="module")
def llm(random_gguf: Path) -> Iterator[LLM]:
    loaded = load_model(random_gguf, torch.float32)
    llm = LLM(loaded.model, loaded.tokenizer, EngineConfig(cache_tokens=1024, threads=1, backend="torch"))
    yield llm
    llm.close()


def test_speeds_of_a_model(llm: LLM) -> None:
    chance = random.Random(0)
    assert prefill_speed(llm, 64, chance) > 0
    start, answers = run(llm, 3, 8, 100, chance)  # the last may begin some steps after the first
    assert all(len(stream.tokens) == len(stream.times) == 100 and stream.times[0] > start for stream in answers)
    assert decode_speed(llm, 3, 8, 100, chance) > 0


def test_the_engines_share_is_told_apart_and_the_library_put_back(random_gguf: Path) -> None:
    native = LLM.load(random_gguf, EngineConfig(cache_tokens=1024, threads=1))
    kernels = native._engine.model.kernels
    library = kernels.library
    overhead = engine_overhead(native, 2, 8, 200, random.Random(0))  # the second may begin some steps late
    assert 0 < overhead.engine_s < overhead.step_s
    assert 0 < overhead.share < 1
    assert kernels.library is library
    native.close()


def test_the_engines_share_needs_native_calls(llm: LLM) -> None:
    with pytest.raises(BenchError, match="torch backend"):
        engine_overhead(llm, 2, 8, 6, random.Random(0))


def test_a_token_reads_what_the_counts_of_parameters_say(random_gguf: Path, llm: LLM) -> None:
    """8-bit blocks are 34 bytes for 32 weights; norms and gates are stored in four bytes each."""
    parts = parameters(SHAPE)
    plain = parts.by_part["norms"] + parts.by_part["gates"] + SHAPE.num_hidden_layers * SHAPE.mla.kv_lora_rank
    blocks = parts.active_without_input_embedding - plain
    assert gguf_bytes(random_gguf, load_config(random_gguf)) == blocks * 34 // 32 + 4 * plain
    assert model_bytes(llm._engine.model) == 4 * parts.active_without_input_embedding


def test_a_tied_head_is_read(tmp_path: Path) -> None:
    tied = replace_fields(SHAPE, {"tie_word_embeddings": True}, "tied")
    sizes = []
    for index, config in enumerate((SHAPE, tied)):
        path = tmp_path / f"{index}.gguf"
        for _ in write(path, config, "q4_0", seed=0):
            pass
        sizes.append(gguf_bytes(path, load_config(path)))
    assert sizes[0] == sizes[1]


def test_memory_bandwidth_is_that_of_a_memory_and_threads_stay_as_they_were() -> None:
    before = torch.get_num_threads()
    assert 1e8 < memory_bandwidth(1) < 1e13
    assert torch.get_num_threads() == before
