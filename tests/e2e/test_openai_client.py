"""OpenAI's Python client, unmodified, against the real server with the real model."""

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from serving import Running, eventually
from tapwater.llm import LLM

MODEL = "smollm2-135m-instruct"
CAPITAL = [{"role": "user", "content": "What is the capital of France?"}]


def ask(client: openai.OpenAI, question: str, **fields: object) -> str:
    messages = [{"role": "user", "content": question}]
    answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0, **fields)
    return answer.choices[0].message.content


def test_chat(client: openai.OpenAI, smollm2: LLM) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens == len(smollm2.encode_chat(CAPITAL))
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0)
    *chunks, last = client.chat.completions.create(
        model=MODEL, messages=CAPITAL, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(pieces) == whole.choices[0].message.content
    assert sum(map(bool, pieces)) > 5
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.usage == whole.usage


def test_stop_string_ends_the_answer_before_itself(client: openai.OpenAI) -> None:
    whole = ask(client, "What is the capital of France?")
    cut = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0, stop=["Par", "never said"])
    assert cut.choices[0].message.content == whole[: whole.index("Par")]
    assert cut.choices[0].finish_reason == "stop"


def test_max_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=CAPITAL, temperature=0, max_completion_tokens=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 3


def test_logprobs_at_temperature_zero_are_those_of_the_best_token(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=CAPITAL, temperature=0, logprobs=True, top_logprobs=20, max_tokens=12
    )
    content = answer.choices[0].logprobs.content
    assert "".join(token.token for token in content).startswith(answer.choices[0].message.content)
    for token in content:
        best = token.top_logprobs[0]
        assert (token.token, token.bytes, token.logprob) == (best.token, best.bytes, best.logprob)
        values = [each.logprob for each in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert len({tuple(each.bytes) for each in token.top_logprobs}) == 20
        assert 0.2 < sum(map(math.exp, values)) <= 1 + 1e-5


def test_logprob_of_a_sampled_token_is_its_own(client: openai.OpenAI) -> None:
    """Wherever the drawn token is among the best, both places name the same probability."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Tell me a story about a fox."}],
        temperature=1,
        seed=5,
        logprobs=True,
        top_logprobs=20,
        max_tokens=30,
        extra_body={"ignore_eos": True},
    )
    content = answer.choices[0].logprobs.content
    in_top = [[each.logprob for each in token.top_logprobs if each.bytes == token.bytes] for token in content]
    assert sum(map(bool, in_top)) > 5
    assert all(token.logprob == found[0] for token, found in zip(content, in_top, strict=True) if found)
    assert any(token.logprob < token.top_logprobs[0].logprob for token in content)  # it was drawn, not the best


def test_n_choices_differ_and_repeat_with_their_seed(client: openai.OpenAI) -> None:
    def texts() -> list[str]:
        answer = client.chat.completions.create(
            model=MODEL, messages=CAPITAL, n=3, seed=42, temperature=1.2, max_tokens=24
        )
        return [choice.message.content for choice in answer.choices]

    first = texts()
    assert len(set(first)) == 3
    assert texts() == first


def test_logit_bias_forces_and_forbids(client: openai.OpenAI, smollm2: LLM) -> None:
    (token,) = smollm2.encode("water")
    forced = ask(client, "Hi", max_tokens=4, logit_bias={str(token): 100}, extra_body={"ignore_eos": True})
    assert forced == "water" * 4
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "Hi", logit_bias={"9999999": 1})
    assert caught.value.param == "logit_bias"


def test_completions_of_text_and_of_its_tokens_agree(client: openai.OpenAI, smollm2: LLM) -> None:
    text = "Water boils at"
    answer = client.completions.create(
        model=MODEL, prompt=[text, "Once upon a time"], temperature=0, max_tokens=8, logprobs=2
    )
    same = client.completions.create(model=MODEL, prompt=smollm2.encode(text), temperature=0, max_tokens=8)
    assert same.choices[0].text == answer.choices[0].text
    assert answer.choices[1].text != answer.choices[0].text
    for choice in answer.choices:
        logprobs = choice.logprobs
        for offset, token in zip(logprobs.text_offset, logprobs.tokens, strict=True):
            assert choice.text[offset : offset + len(token)] == token
        for token, value, top in zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
            assert max(top.values()) == value == top[token]


def test_a_conversation_reaches_the_model(client: openai.OpenAI) -> None:
    told = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "My name is Alice."},
        {"role": "assistant", "content": "Hello Alice! Nice to meet you."},
        {"role": "user", "content": "What is my name?"},
    ]
    answer = client.chat.completions.create(model=MODEL, messages=told, temperature=0, max_tokens=30)
    assert "Alice" in answer.choices[0].message.content


def test_errors(client: openai.OpenAI, smollm2: LLM) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "water " * (smollm2.max_context + 10))
    assert caught.value.code == "context_length_exceeded"
    assert str(smollm2.max_context) in caught.value.message
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "Hi", max_tokens=smollm2.max_context)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError, match=MODEL):
        client.chat.completions.create(model="gpt-5", messages=CAPITAL)
    with pytest.raises(openai.BadRequestError, match="Unknown field 'temprature'"):
        ask(client, "Hi", extra_body={"temprature": 0})
    with pytest.raises(openai.BadRequestError, match="tools"):
        ask(client, "Hi", tools=[{"type": "function", "function": {"name": "f"}}])


def test_eight_streams_at_once_say_what_each_says_alone(client: openai.OpenAI) -> None:
    questions = [f"Name {number} things that are {color}." for number, color in itertools.product((2, 3), COLORS)]

    def streamed(question: str) -> str:
        messages = [{"role": "user", "content": question}]
        stream = client.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, max_tokens=12, stream=True
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(streamed, questions))
    assert together == [ask(client, question, max_tokens=12) for question in questions]


COLORS = ("red", "green", "blue", "white")


def test_a_client_that_goes_away_frees_the_engine(client: openai.OpenAI, smollm2: LLM) -> None:
    endless = {"temperature": 0, "extra_body": {"ignore_eos": True}, "stream": True, "n": 2}
    stream = client.chat.completions.create(model=MODEL, messages=CAPITAL, **endless)
    for _ in range(5):
        next(stream)
    assert smollm2.num_running == 2
    stream.close()
    eventually(lambda: smollm2.num_running == 0)


def test_health_counts_what_runs(smollm2_server: Running, client: openai.OpenAI) -> None:
    import httpx2

    with client.chat.completions.create(
        model=MODEL, messages=CAPITAL, stream=True, extra_body={"ignore_eos": True}
    ) as stream:
        next(stream)
        next(stream)
        assert httpx2.get(f"{smollm2_server.url}/health").json()["running"] == 1
