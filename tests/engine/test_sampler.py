"""The sampler against transformers' logits processors and against its own stated order."""

import math
from collections import Counter

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tapwater.engine.request import Request, SamplingParams, TokenLogprobs
from tapwater.engine.sampler import _adjusted, _candidates, sample
from tapwater.model import Prediction


def take(logits_W: torch.Tensor, request: Request) -> tuple[int, TokenLogprobs | None]:
    return sample(Prediction(logits_W[None], [int(logits_W.argmax())], [True]), 0, request)


def request(params: SamplingParams, prompt: list[int] | None = None, output: list[int] | None = None) -> Request:
    generator = torch.Generator().manual_seed(params.seed or 0)
    return Request(0, prompt or [1], params, 100, generator, output_token_ids=output or [])


def logits(vocab: int, seed: int, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * spread


def our_probs(logits_W: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """The distribution the sampler draws from, over the whole vocabulary."""
    ids, kept = _candidates((logits_W.double() / params.temperature).softmax(-1), params)
    probs = torch.zeros(logits_W.shape[0], dtype=torch.float64)
    probs[ids if ids is not None else torch.arange(len(kept))] = kept
    return probs / probs.sum()


@pytest.mark.parametrize("vocab", [50, 5000])
@pytest.mark.parametrize("spread", [0.05, 2.0])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.3},
        {"top_k": 1},
        {"top_k": 7},
        {"top_k": 2000},
        {"top_k": 10**9},
        {"top_p": 0.9},
        {"top_p": 0.05},
        {"top_p": 0.999},
        {"min_p": 0.1},
        {"min_p": 1.0},
        {"temperature": 1.7, "top_k": 40, "top_p": 0.8},
        {"temperature": 0.8, "top_k": 1500, "top_p": 0.95},
        {"temperature": 1.2, "top_k": 30, "top_p": 0.9, "min_p": 0.05},
    ],
)
def test_candidates_are_those_of_transformers(settings: dict, spread: float, vocab: int) -> None:
    params = SamplingParams(**settings)
    warpers = LogitsProcessorList([TemperatureLogitsWarper(params.temperature)] if params.temperature != 1 else [])
    if params.top_k:
        warpers.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        warpers.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        warpers.append(MinPLogitsWarper(params.min_p))
    for seed in range(5):
        row = logits(vocab, seed, spread)
        expected = warpers(torch.tensor([[1]]), row[None].double())[0].softmax(-1)
        torch.testing.assert_close(our_probs(row, params), expected, atol=1e-9, rtol=1e-6)


@pytest.mark.parametrize("penalty", [0.5, 1.3])
def test_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    row = logits(50, 0)
    ours = _adjusted(row, request(SamplingParams(repetition_penalty=penalty), prompt=[3, 4, 4], output=[7, 7, 9]))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([[3, 4, 4, 7, 7, 9]]), row[None].clone())[0]
    torch.testing.assert_close(ours, expected)


def test_presence_and_frequency_follow_openais_formula() -> None:
    row = logits(20, 0)
    params = SamplingParams(presence_penalty=0.7, frequency_penalty=-0.4, logit_bias={2: 5.0, 9: -100.0})
    ours = _adjusted(row, request(params, prompt=[1, 1], output=[4, 4, 4, 6]))
    expected = row.clone()
    expected[4] -= 0.7 + 3 * -0.4
    expected[6] -= 0.7 - 0.4
    expected[2] += 5
    expected[9] -= 100
    torch.testing.assert_close(ours, expected)
    both = SamplingParams(repetition_penalty=2.0, logit_bias={3: 1.5})
    biased_first = _adjusted(torch.ones(5), request(both, prompt=[3]))
    assert biased_first.tolist() == [1, 1, 1, 1.25, 1]
    assert torch.equal(row, logits(20, 0)), "the model's own logits must stay as they are"


def test_draws_follow_the_distribution() -> None:
    row = logits(12, 3, spread=1.0)
    drawing = request(SamplingParams(top_k=8, seed=5))
    counts = Counter(take(row, drawing)[0] for _ in range(20_000))
    expected = our_probs(row, drawing.params)
    assert set(counts) <= set(expected.nonzero().flatten().tolist())
    chi_square = sum((counts[i] - 20_000 * p) ** 2 / (20_000 * p) for i, p in enumerate(expected.tolist()) if p)
    assert chi_square < 24.3  # 7 degrees of freedom, p = 0.001


def test_greedy_is_the_best_token_and_ignores_the_seed() -> None:
    rows = torch.stack([logits(100, seed) for seed in range(6)])
    requests = [request(SamplingParams(temperature=0, seed=seed, top_p=0.1)) for seed in range(6)]
    assert [take(*each)[0] for each in zip(rows, requests, strict=True)] == rows.argmax(-1).tolist()


def test_extreme_logits_draw_a_possible_token() -> None:
    row = torch.full((30,), -math.inf)
    row[11] = 0.0
    for settings in ({}, {"temperature": 0}, {"top_p": 0.5}, {"top_k": 5}, {"min_p": 0.3}, {"temperature": 1e-6}):
        assert take(row, request(SamplingParams(**settings)))[0] == 11
    for temperature in (5e-324, 1e-308, 1e-30):
        assert take(logits(30, 0), request(SamplingParams(temperature=temperature)))[0] == int(logits(30, 0).argmax())
    row[11] = 1e30
    assert take(row, request(SamplingParams(temperature=1e-6)))[0] == 11


def test_logprobs_are_of_the_unmodified_distribution() -> None:
    row = logits(40, 1)
    params = SamplingParams(temperature=0, logit_bias={5: 100.0}, logprobs=3)
    token, found = take(row, request(params))
    assert token == 5
    assert found is not None
    expected = row.log_softmax(-1)
    assert found.logprob == pytest.approx(float(expected[5]))
    best = expected.topk(3)
    assert [token for token, _ in found.top] == best.indices.tolist()
    assert [value for _, value in found.top] == pytest.approx(best.values.tolist())
    _, none_asked = take(row, request(SamplingParams(temperature=0, logprobs=0)))
    assert none_asked is not None
    assert none_asked.top == ()
