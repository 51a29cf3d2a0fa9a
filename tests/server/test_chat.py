"""The chat endpoint as OpenAI's Python client sees it."""

import json

import httpx2
import openai
import pytest

from serving import MODEL, FakeLLM
from tapwater.engine.request import SamplingParams

USER = [{"role": "user", "content": "What is water?"}]
WORDS = ["Water", " is", " made", " of", " hydrogen", " and", " oxygen."]


def test_answer_has_every_field(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=USER)
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    assert answer.model == MODEL
    assert answer.created > 1.7e9
    assert answer.system_fingerprint.startswith("fp_")
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (choice.message.role, choice.message.content, choice.message.refusal) == ("assistant", "".join(WORDS), None)
    prompt_tokens = len("<user>What is water?")
    assert answer.usage.prompt_tokens == prompt_tokens
    assert answer.usage.completion_tokens == len(WORDS)
    assert answer.usage.total_tokens == prompt_tokens + len(WORDS)
    assert answer.usage.prompt_tokens_details.cached_tokens == prompt_tokens // 2
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    extra = answer.usage.model_extra
    assert extra["prompt_cache_hit_tokens"] + extra["prompt_cache_miss_tokens"] == prompt_tokens


def test_stream_opens_with_role_and_closes_with_reason(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=USER, stream=True))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created, chunk.system_fingerprint) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.content for chunk in chunks[1:-1]] == WORDS
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all("usage" not in chunk.model_fields_set for chunk in chunks)


def test_stream_helper_of_the_client_assembles_the_answer(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model=MODEL, messages=USER, n=2) as stream:
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == ["".join(WORDS)] * 2


@pytest.mark.parametrize("options", [{}, {"include_usage": False}, None])
def test_usage_is_streamed_only_when_asked_for(client: openai.OpenAI, options: dict | None) -> None:
    chunks = list(client.chat.completions.create(model=MODEL, messages=USER, stream=True, stream_options=options))
    assert all(chunk.choices for chunk in chunks)


def test_usage_comes_in_a_chunk_of_its_own(http: httpx2.Client) -> None:
    body = {"model": MODEL, "messages": USER, "stream": True, "stream_options": {"include_usage": True}, "n": 2}
    response = http.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n")
    assert all(line == "" or line.startswith("data: ") for line in lines)  # above all no id:
    data = [line.removeprefix("data: ") for line in lines if line]
    assert data[-1] == "[DONE]"
    *chunks, usage = map(json.loads, data[:-1])
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == []
    assert usage["usage"]["prompt_tokens"] == len("<user>What is water?")  # the prompt counts once
    assert usage["usage"]["completion_tokens"] == 2 * len(WORDS)


def test_n_choices_count_the_seed_up(client: openai.OpenAI, llm: FakeLLM) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=USER, n=3, seed=7)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert sorted(params.seed for _, params, _ in llm.submitted) == [7, 8, 9]
    assert answer.usage.prompt_tokens == len("<user>What is water?")
    assert answer.usage.completion_tokens == 3 * len(WORDS)


def test_n_choices_are_streamed_under_their_index(client: openai.OpenAI) -> None:
    texts = {0: "", 1: ""}
    for chunk in client.chat.completions.create(model=MODEL, messages=USER, n=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "".join(WORDS), 1: "".join(WORDS)}


def test_every_sampling_field_reaches_the_engine(client: openai.OpenAI, llm: FakeLLM) -> None:
    client.chat.completions.create(
        model=MODEL,
        messages=USER,
        temperature=0.5,
        top_p=0.9,
        max_completion_tokens=3,
        stop=["\n", "END"],
        seed=11,
        presence_penalty=-1,
        frequency_penalty=1.5,
        logit_bias={"5": -100, "6": 2.5},
        logprobs=True,
        top_logprobs=4,
        extra_body={"top_k": 40, "min_p": 0.1, "repetition_penalty": 1.2, "ignore_eos": True},
    )
    ((_, params, stop),) = llm.submitted
    assert stop == ("\n", "END")
    assert params == SamplingParams(
        max_tokens=3,
        temperature=0.5,
        top_k=40,
        top_p=0.9,
        min_p=0.1,
        seed=11,
        repetition_penalty=1.2,
        presence_penalty=-1,
        frequency_penalty=1.5,
        logit_bias={5: -100, 6: 2.5},
        logprobs=4,
        ignore_eos=True,
    )


def test_defaults_are_openais(client: openai.OpenAI, llm: FakeLLM) -> None:
    client.chat.completions.create(model=MODEL, messages=USER, stop="x")
    ((_, params, stop),) = llm.submitted
    assert params == SamplingParams(max_tokens=None, temperature=1, top_p=1, logprobs=None)
    assert stop == ("x",)


def test_max_tokens_ends_with_length(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=USER, max_tokens=2, max_completion_tokens=2)
    assert answer.choices[0].message.content == "Water is"
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(("top_logprobs", "count"), [(None, 0), (0, 0), (3, 3)])
def test_logprobs(client: openai.OpenAI, top_logprobs: int | None, count: int) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=USER, logprobs=True, top_logprobs=top_logprobs)
    content = answer.choices[0].logprobs.content
    assert [token.token for token in content] == WORDS
    assert all(bytes(token.bytes).decode() == token.token and token.logprob == -0.25 for token in content)
    assert all(len(token.top_logprobs) == count for token in content)


def test_streamed_logprobs_come_with_their_text(client: openai.OpenAI) -> None:
    for chunk in client.chat.completions.create(model=MODEL, messages=USER, logprobs=True, top_logprobs=1, stream=True):
        (choice,) = chunk.choices
        if choice.delta.content:
            assert [token.token for token in choice.logprobs.content] == [choice.delta.content]


def test_messages_are_rendered_whole(client: openai.OpenAI, llm: FakeLLM) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    client.chat.completions.create(
        model=MODEL,
        messages=[
            {"role": "system", "content": "s"},
            {"role": "developer", "content": [{"type": "text", "text": "d"}]},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "c"},
        ],
    )
    assert bytes(llm.submitted[0][0]) == b"<system>s<system>d<user>ab<assistant>c"


def test_an_answer_can_be_sent_back_as_it_came(client: openai.OpenAI, llm: FakeLLM) -> None:
    first = client.chat.completions.create(model=MODEL, messages=USER)
    for echoed in (first.choices[0].message, first.choices[0].message.model_dump()):
        client.chat.completions.create(model=MODEL, messages=[*USER, echoed, *USER])
        assert b"<assistant>Water is made" in bytes(llm.submitted[-1][0])


def test_null_is_absent(http: httpx2.Client) -> None:
    optional = [
        *("temperature", "top_p", "n", "max_tokens", "max_completion_tokens", "seed", "stop", "stream", "tools"),
        *("stream_options", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "top_logprobs"),
        *("response_format", "metadata", "store", "user", "reasoning_effort", "audio", "top_k", "ignore_eos"),
    ]
    response = http.post("/v1/chat/completions", json={"model": MODEL, "messages": USER} | dict.fromkeys(optional))
    assert response.status_code == 200, response.text


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (MODEL, "model", "tapwater")
    assert client.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError, match=MODEL):
        client.models.retrieve("gpt-4o")
