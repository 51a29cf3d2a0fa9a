"""Cached generation equals uncached generation token for token, whatever the schedule."""

import random
from collections.abc import Callable

import pytest

from tapwater.config import EngineConfig
from tapwater.engine import Engine, FinishReason, Request, SamplingParams
from tapwater.errors import ConfigError, RequestError
from tiny import CONFIGS, prompt, tiny_model, uncached_greedy

NEW = 12
GREEDY = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True)


def engine(name: str, **changes: int) -> Engine:
    settings = {"page_size": 4, "cache_tokens": 256, "max_batch_tokens": 64, "max_requests": 16} | changes
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
    running = engine(name, max_batch_tokens=17, page_size=page_size, cache_tokens=320)
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


def test_a_cache_no_memory_can_hold_is_refused() -> None:
    with pytest.raises(ConfigError, match="cache_tokens"):
        engine("v2", cache_tokens=2**46)
