"""The completions endpoint as OpenAI's Python client sees it."""

import openai
import pytest

from serving import MODEL, FakeLLM

WORDS = ["Water", " is", " made", " of", " hydrogen", " and", " oxygen."]


def test_answer_has_every_field(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="Water")
    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.system_fingerprint.startswith("fp_")
    (choice,) = answer.choices
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, "".join(WORDS), "stop", None)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, len(WORDS))


def test_sixteen_tokens_unless_told_otherwise(client: openai.OpenAI, llm: FakeLLM) -> None:
    client.completions.create(model=MODEL, prompt="Water")
    client.completions.create(model=MODEL, prompt="Water", max_tokens=3, best_of=1, echo=False)
    assert [params.max_tokens for _, params, _ in llm.submitted] == [16, 3]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("ab", [[97, 98]]),
        (["ab", "c"], [[97, 98], [99]]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ],
)
def test_all_forms_of_a_prompt(client: openai.OpenAI, llm: FakeLLM, prompt: object, expected: list[list[int]]) -> None:
    answer = client.completions.create(model=MODEL, prompt=prompt)  # pyrefly: ignore
    assert [prompt for prompt, _, _ in llm.submitted] == expected
    assert [choice.index for choice in answer.choices] == list(range(len(expected)))


def test_choices_of_several_prompts_are_in_order(client: openai.OpenAI, llm: FakeLLM) -> None:
    answer = client.completions.create(model=MODEL, prompt=["a", "bbb"], n=2, seed=3)
    assert [(len(prompt), params.seed) for prompt, params, _ in llm.submitted] == [(1, 3), (1, 4), (3, 3), (3, 4)]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 4
    assert answer.usage.completion_tokens == 4 * len(WORDS)


def test_stream(client: openai.OpenAI) -> None:
    stream = client.completions.create(
        model=MODEL, prompt=["a", "b"], stream=True, stream_options={"include_usage": True}
    )
    *chunks, usage = list(stream)
    texts = ["", ""]
    for chunk in chunks:
        assert chunk.object == "text_completion"
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["".join(WORDS)] * 2
    assert [chunk.choices[0].finish_reason for chunk in chunks].count("stop") == 2
    assert usage.choices == []
    assert usage.usage.total_tokens == 2 + 2 * len(WORDS)


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_in_the_older_form(client: openai.OpenAI, stream: bool) -> None:
    answer = client.completions.create(model=MODEL, prompt="a", logprobs=3, stream=stream)
    parts = [chunk.choices[0].logprobs for chunk in answer] if stream else [answer.choices[0].logprobs]
    assert [token for part in parts for token in part.tokens] == WORDS
    offsets = [offset for part in parts for offset in part.text_offset]
    assert [("".join(WORDS))[offset:].startswith(word) for offset, word in zip(offsets, WORDS, strict=True)]
    assert offsets == [0, 5, 8, 13, 16, 25, 29]
    for top, word in zip((top for part in parts for top in part.top_logprobs), WORDS, strict=True):
        assert top[word] == -0.25
        assert top["bytes:\\xf0\\x9f"] == pytest.approx(-3.5)


def test_logprobs_zero_name_the_chosen_token_only(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="a", logprobs=0, max_tokens=1)
    assert answer.choices[0].logprobs.top_logprobs == [{"Water": -0.25}]
