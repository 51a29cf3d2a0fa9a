"""Cached generation equals uncached generation token for token, whatever the schedule."""

import copy
import math
import random
from collections.abc import Callable

import pytest
import torch

from tapwater.config import EngineConfig
from tapwater.engine import Engine, FinishReason, Request, RequestFailure, SamplingParams
from tapwater.errors import ConfigError, RequestError
from tapwater.model import Sequences, Transformer
from tiny import CONFIGS, prompt, tiny_model, uncached_greedy

NEW = 12
GREEDY = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)


def engine(name: str, **changes: int) -> Engine:
    settings = {"page_size": 4, "cache_tokens": 256, "max_batch_tokens": 64} | changes
    settings = {"max_requests": min(16, settings["max_batch_tokens"])} | settings
    return Engine(tiny_model(name), EngineConfig(**settings), eos_token_ids=(1,))


def run(engine: Engine, requests: list[Request], before_step: Callable[[int], None] = lambda step: None) -> int:
    """Step until done, checking every invariant after every step; the number of steps."""
    steps = 0
    while engine.has_work:
        before_step(steps)
        engine.step()
        engine.check()
        steps += 1
        assert steps < 5000, "the engine does not come to an end"
    assert engine.scheduler.pool.num_free == engine.scheduler.pool.num_pages
    assert all(request.finish_reason is not None for request in requests)
    return steps


def start(engine: Engine, prompt_ids: list[int], params: SamplingParams = GREEDY) -> Request:
    request = engine.create(prompt_ids, params)
    engine.add(request)
    return request


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("budget", [*range(1, 12), 16, 29, 30, 31, 64])
def test_every_chunk_size(name: str, budget: int) -> None:
    ids = prompt(30, seed=1)
    running = engine(name, max_batch_tokens=budget)
    request = start(running, ids)
    steps = run(running, [request])
    assert request.output_token_ids == uncached_greedy(name, tuple(ids), NEW)
    assert steps == -(-30 // budget) + NEW - 1


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("page_size", [1, 3, 16, 64])
def test_among_strangers_of_all_lengths(name: str, page_size: int) -> None:
    running = engine(name, max_batch_tokens=17, page_size=page_size, cache_tokens=384)
    prompts = [prompt(length, seed=length) for length in (1, 2, 7, 16, 17, 18, 33)]
    later = list(zip((0, 0, 1, 2, 4, 5, 9), prompts, strict=True))
    requests: list[Request] = []

    def arrive(step: int) -> None:
        while later and later[0][0] <= step:
            requests.append(start(running, later.pop(0)[1]))

    arrive(0)
    run(running, requests, arrive)
    assert len(requests) == len(prompts)
    for request, ids in zip(requests, prompts, strict=True):
        assert request.output_token_ids == uncached_greedy(name, tuple(ids), NEW)


@pytest.mark.parametrize("name", CONFIGS)
def test_preemption_at_every_step(name: str) -> None:
    ids, other = prompt(11, seed=5), prompt(6, seed=6)
    for victim_step in range(24):
        running = engine(name, max_batch_tokens=5)
        requests = [start(running, ids), start(running, other)]

        def preempt(step: int, running: Engine = running, at: int = victim_step) -> None:
            if step == at and running.scheduler.running:
                running.scheduler.preempt()

        run(running, requests, preempt)
        assert requests[0].output_token_ids == uncached_greedy(name, tuple(ids), NEW)
        assert requests[1].output_token_ids == uncached_greedy(name, tuple(other), NEW)


@pytest.mark.parametrize("name", ["v2", "llama-gqa"])
def test_a_cache_too_small_for_all_preempts_and_still_answers(name: str) -> None:
    running = engine(name, cache_tokens=36, page_size=4, max_batch_tokens=16)
    preempted: list[int] = []
    original = running.scheduler.preempt

    def counting() -> None:
        preempted.append(running.scheduler.running[-1].request_id)
        original()

    running.scheduler.preempt = counting
    prompts = [prompt(length, seed=20 + length) for length in (9, 8, 7, 6, 10)]
    requests = [start(running, ids) for ids in prompts]
    run(running, requests)
    assert preempted, "the test means to run out of pages"
    assert requests[0].request_id not in preempted
    for request, ids in zip(requests, prompts, strict=True):
        assert request.output_token_ids == uncached_greedy(name, tuple(ids), NEW)


def test_random_traffic_keeps_every_page_accounted_for() -> None:
    chance = random.Random(0)
    running = engine("v2", cache_tokens=80, page_size=4, max_batch_tokens=13, max_requests=5)
    requests: list[Request] = []
    for _ in range(300):
        if chance.random() < 0.3:
            params = SamplingParams(temperature=1.0, seed=chance.randrange(99), max_tokens=chance.randint(1, 20))
            requests.append(start(running, prompt(chance.randint(1, 40), seed=len(requests)), params))
        if requests and chance.random() < 0.1:
            running.finish(chance.choice(requests), FinishReason.ABORT)
        if running.has_work:
            running.step()
        running.check()
    run(running, requests)
    assert {request.finish_reason for request in requests} == set(FinishReason)


def test_a_seed_gives_one_answer_whoever_shares_the_batch() -> None:
    params = SamplingParams(temperature=1.3, top_p=0.9, seed=11, max_tokens=NEW, ignore_eos=True)
    alone = engine("v2")
    expected = start(alone, prompt(9, seed=2), params)
    run(alone, [expected])
    crowded = engine("v2", max_batch_tokens=7)
    others = [start(crowded, prompt(5, seed=seed), SamplingParams(max_tokens=20)) for seed in range(4)]
    same = start(crowded, prompt(9, seed=2), params)
    run(crowded, [*others, same], lambda step: crowded.scheduler.preempt() if step == 9 else None)
    assert same.output_token_ids == expected.output_token_ids
    different = start(alone, prompt(9, seed=2), SamplingParams(temperature=1.3, top_p=0.9, seed=12, max_tokens=NEW))
    run(alone, [different])
    assert different.output_token_ids != expected.output_token_ids


def test_finish_reasons() -> None:
    greedy = uncached_greedy("v2", tuple(prompt(9, seed=2)), NEW)
    running = engine("v2")
    by_length = start(running, prompt(9, seed=2))
    by_stop_token = start(
        running, prompt(9, seed=2), SamplingParams(temperature=0, max_tokens=NEW, stop_token_ids=(greedy[4],))
    )
    to_the_end = start(running, prompt(250, seed=2), SamplingParams(temperature=0, ignore_eos=True))
    forced_end = start(running, prompt(9, seed=2), SamplingParams(temperature=0, logit_bias={1: 100.0}))
    run(running, [by_length, by_stop_token, to_the_end, forced_end])
    assert by_length.finish_reason == FinishReason.LENGTH
    assert by_stop_token.finish_reason == FinishReason.STOP
    assert by_stop_token.output_token_ids == greedy[: greedy.index(greedy[4]) + 1]
    assert (to_the_end.finish_reason, to_the_end.num_tokens) == (FinishReason.LENGTH, 256)
    assert (forced_end.finish_reason, forced_end.output_token_ids) == (FinishReason.STOP, [1])


def test_abort_in_every_state_frees_everything() -> None:
    running = engine("v2", max_requests=1, max_batch_tokens=4)
    first, second = start(running, prompt(9, seed=1)), start(running, prompt(9, seed=2))
    running.step()
    running.finish(first, FinishReason.ABORT)
    running.finish(second, FinishReason.ABORT)
    running.finish(second, FinishReason.STOP)
    assert second.finish_reason == FinishReason.ABORT
    assert not running.has_work
    running.check()
    assert running.scheduler.pool.num_free == running.scheduler.pool.num_pages


@pytest.mark.parametrize(
    ("ids", "params", "param", "words"),
    [
        ([], GREEDY, "prompt", "empty"),
        ([96], GREEDY, "prompt", "96"),
        ([-1], GREEDY, "prompt", "-1"),
        ([2.0], GREEDY, "prompt", "token ids"),
        (["a"], GREEDY, "prompt", "token ids"),
        ([2] * 256, GREEDY, "prompt", "256"),
        ([2] * 250, GREEDY, "max_tokens", "262"),
        ([2], SamplingParams(logit_bias={96: 1.0}), "logit_bias", "96"),
        ([2], SamplingParams(stop_token_ids=(400,)), "stop_token_ids", "400"),
    ],
)
def test_requests_that_cannot_be_honoured_are_refused(
    ids: list[int], params: SamplingParams, param: str, words: str
) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        engine("v2").create(ids, params)
    assert caught.value.param == param


@pytest.mark.parametrize(
    "field",
    [
        {"max_tokens": 0},
        {"max_tokens": 2.5},
        {"max_tokens": True},
        {"max_tokens": "5"},
        {"temperature": None},
        {"min_p": None},
        {"top_k": 2.5},
        {"seed": 1.5},
        {"logprobs": 1.5},
        {"ignore_eos": 1},
        {"stop_token_ids": None},
        {"stop_token_ids": (1.0,)},
        {"logit_bias": None},
        {"logit_bias": {2.5: 1.0}},
        {"logit_bias": {"5": 1.0}},
        {"logit_bias": {5: float("nan")}},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"top_k": -1},
        {"min_p": 1.5},
        {"repetition_penalty": 0.0},
        {"presence_penalty": 2.5},
        {"frequency_penalty": float("inf")},
        {"logprobs": 21},
        {"logit_bias": {3: 101.0}},
        {"logit_bias": {-3: 1.0}},
    ],
)
def test_sampling_params_out_of_range_are_named(field: dict) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**field)
    assert caught.value.param == next(iter(field))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"cache_tokens": 2**38}, "cache_tokens"),  # more than any memory here
        ({"max_context": 10_000}, "max_context 10000"),
        ({"cache_tokens": 30}, "not a multiple of page_size"),
        ({"max_requests": 65}, "more than max_batch_tokens"),
    ],
)
def test_settings_that_cannot_be_had_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        engine("v2", **settings)


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_generates_what_the_whole_sequence_in_bfloat16_does(name: str) -> None:
    model = Transformer.random(CONFIGS[name], seed=3, dtype=torch.bfloat16)
    running = Engine(model, EngineConfig(max_batch_tokens=16, max_requests=4), eos_token_ids=())
    request = start(running, prompt(21, seed=1))
    run(running, [request])
    # scored whole: rounding differs with the order of sums, so the choice must be near the best, not the best
    ids = torch.tensor(request.tokens(0, request.num_tokens))
    sequences = Sequences((len(ids),))
    logits = model.logits(model(ids, sequences.positions(), sequences).hidden_TD)[20:-1]
    chosen = logits.gather(1, ids[21:, None])[:, 0]
    assert (logits.amax(1) - chosen).max() < 0.1 * logits.std()
    assert all(buffer.dtype == torch.float32 for buffer in model.buffers())


def test_logits_that_are_no_numbers_end_only_their_request() -> None:
    model = copy.deepcopy(tiny_model("v2"))
    with torch.no_grad():
        model.embed_tokens.weight[7] = math.nan
    running = Engine(model, EngineConfig(cache_tokens=256, max_batch_tokens=64), eos_token_ids=())
    bad, good = start(running, [7, 8]), start(running, [8, 9, 10])
    failed = [output.request_id for output in running.step() if isinstance(output, RequestFailure)]
    assert failed == [bad.request_id]
    run(running, [good])
    # the head's row 7 is damaged in no way: only what read the embedding is
    assert good.output_token_ids == uncached_greedy("v2", (8, 9, 10), NEW)


def test_no_more_than_max_requests_run_together() -> None:
    running = engine("v2", max_requests=2)
    requests = [start(running, prompt(5, seed=seed)) for seed in range(5)]
    together: list[int] = []
    run(running, requests, lambda step: together.append(len(running.scheduler.running)))
    assert max(together) == 2


def test_a_request_waits_until_all_its_tokens_have_room() -> None:
    running = engine("v2", cache_tokens=32, max_batch_tokens=8)
    first = start(running, prompt(13, seed=1), SamplingParams(temperature=0, max_tokens=16, ignore_eos=True))
    second = start(running, prompt(20, seed=2), SamplingParams(temperature=0, max_tokens=12, ignore_eos=True))
    while first.finish_reason is None:  # it holds at least 4 of 8 pages and the second needs 5
        running.step()
        assert not second.pages
    run(running, [first, second])
    assert second.output_token_ids == uncached_greedy("v2", tuple(prompt(20, seed=2)), 12)
