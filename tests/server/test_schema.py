"""Each field of OpenAI's request bodies is honoured, accepted because it asks for nothing, or refused by name."""

from collections.abc import Iterator
from typing import Any, get_type_hints

import httpx2
import pytest
from openai.types import completion_create_params
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionStreamOptionsParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat import completion_create_params as chat_create_params

from serving import MODEL, FakeLLM, running
from tapwater.server import schema

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
BASE: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS: {"model": MODEL, "prompt": "hi"},
}


@pytest.fixture(scope="module")
def http() -> Iterator[httpx2.Client]:
    """One server for all: a refused request leaves nothing behind, and there are many."""
    with running(FakeLLM()) as server, httpx2.Client(base_url=server.url, timeout=30) as http:
        yield http


def refusal(http: httpx2.Client, path: str, fields: dict[str, Any], status: int = 400) -> dict[str, Any]:
    """The error body of a request with `fields`, whose shape is checked."""
    response = http.post(path, json=BASE[path] | fields)
    assert response.status_code == status, response.text
    assert response.json().keys() == {"error"}
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    return error


@pytest.mark.parametrize(
    ("body", "model"),
    [
        (chat_create_params.CompletionCreateParamsStreaming, schema.ChatRequest),
        (completion_create_params.CompletionCreateParamsStreaming, schema.CompletionRequest),
        (ChatCompletionStreamOptionsParam, schema.StreamOptions),
        (ChatCompletionSystemMessageParam, schema.Message),
        (ChatCompletionDeveloperMessageParam, schema.Message),
        (ChatCompletionUserMessageParam, schema.Message),
        (ChatCompletionAssistantMessageParam, schema.Message),
        (ChatCompletionContentPartTextParam, schema.TextPart),
    ],
)
def test_every_field_the_client_knows_is_decided(body: type, model: type[schema.Strict]) -> None:
    known = set(get_type_hints(body))
    assert known  # a client that spells its bodies otherwise would make this test empty
    assert known <= model.model_fields.keys() | model.unsupported.keys()
    assert not model.model_fields.keys() & model.unsupported.keys()


@pytest.mark.parametrize("field", schema.CHAT_UNSUPPORTED)
def test_unsupported_chat_fields_are_refused_by_name(http: httpx2.Client, field: str) -> None:
    error = refusal(http, CHAT, {field: "something else"})
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")
    assert field in error["message"]


@pytest.mark.parametrize("field", schema.COMPLETION_UNSUPPORTED)
def test_unsupported_completion_fields_are_refused_by_name(http: httpx2.Client, field: str) -> None:
    assert refusal(http, COMPLETIONS, {field: "tail"})["code"] == "unsupported_parameter"


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "text", "extra": 1}},
        {"store": True},
        {"store": 0},
        {"service_tier": "flex"},
        {"modalities": ["text", "audio"]},
        {"tool_choice": "auto"},
        {"reasoning_effort": "low"},
        {"stream": True, "stream_options": {"include_obfuscation": True}},
    ],
)
def test_forms_that_would_change_the_answer_are_refused(http: httpx2.Client, fields: dict[str, Any]) -> None:
    assert refusal(http, CHAT, fields)["code"] == "unsupported_parameter"


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "u", "safety_identifier": "s", "prompt_cache_key": "k", "metadata": {"a": "b"}},
        {"stream": True, "stream_options": {"include_obfuscation": False, "include_usage": True}},
        *({field: value} for field, values in schema.CHAT_UNSUPPORTED.items() for value in values),
    ],
)
def test_forms_that_ask_for_nothing_are_accepted(http: httpx2.Client, fields: dict[str, Any]) -> None:
    assert http.post(CHAT, json=BASE[CHAT] | fields).status_code == 200


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("field", "hint"), [("temprature", "'temperature'"), ("qqqq", ""), ("__class__", "")])
def test_unknown_fields_are_refused_even_when_null(http: httpx2.Client, path: str, field: str, hint: str) -> None:
    for value in (1, None):
        error = refusal(http, path, {field: value})
        assert (error["param"], error["code"]) == (field, "unknown_parameter")
        assert field in error["message"]
        assert hint in error["message"]


WRONG = [
    ("temperature", [-0.1, 2.1, "1", True, [1]]),
    ("top_p", [0, 1.1, "0.5"]),
    ("n", [0, 9, 1.0, True, "1"]),
    ("max_tokens", [0, -1, 1.0, "5", True]),
    ("seed", [0.5, "1", True, 2**63, -(2**63) - 1]),
    ("presence_penalty", [-2.1, 2.1, "0"]),
    ("frequency_penalty", [-2.1, 2.1, False]),
    ("stream", [1, "true"]),
    ("user", [5]),
    ("stop", [5, "", ["a", ""], ["a"] * 17, [5], {"a": 1}]),
    ("logit_bias", [[1], {"a": 1}, {"-1": 1}, {" 5": 1}, {"5": 101}, {"5": "1"}, {"5": True}]),
    ("top_k", [-1, 1.5]),
    ("min_p", [-0.1, 1.1]),
    ("repetition_penalty", [0, -1]),
    ("ignore_eos", [1]),
    ("model", [None, 5]),
]


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG for value in values])
def test_wrong_values_are_refused_by_name(http: httpx2.Client, path: str, field: str, value: Any) -> None:
    error = refusal(http, path, {field: value})
    assert error["param"].startswith(field)
    assert error["message"].split(":")[0].startswith(field) or repr(field) in error["message"]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"logprobs": 1}, "logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": True}, "top_logprobs"),
        (CHAT, {"top_logprobs": 2}, "top_logprobs"),
        (CHAT, {"logprobs": False, "top_logprobs": 0}, "top_logprobs"),
        (CHAT, {"max_completion_tokens": "5"}, "max_completion_tokens"),
        (CHAT, {"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        (CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
        (CHAT, {"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        (CHAT, {"metadata": {"a": 1}}, "metadata.a"),
        (COMPLETIONS, {"logprobs": True}, "logprobs"),
        (COMPLETIONS, {"logprobs": 6}, "logprobs"),
        (COMPLETIONS, {"best_of": 2}, "best_of"),
        (COMPLETIONS, {"stream_options": {}}, "stream_options"),
        (COMPLETIONS, {"messages": []}, "messages"),
        *(
            (COMPLETIONS, {"prompt": prompt}, "prompt")
            for prompt in (None, 5, [], [[]], [1, "x"], [True], [1.0], [[1], [True]], ["a"] * 33, {"a": 1})
        ),
    ],
)
def test_fields_of_one_endpoint_or_pair(http: httpx2.Client, path: str, fields: dict[str, Any], param: str) -> None:
    assert refusal(http, path, fields)["param"] == param


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        (None, "messages"),
        ([], "messages"),
        ("hi", "messages"),
        (["hi"], "messages[0]"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"content": "hi"}], "messages[0].role"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "tool", "content": "x", "tool_call_id": "c"}], "messages[0].role"),
        ([{"role": "user", "content": "x"}, {"role": "narrator", "content": "x"}], "messages[1].role"),
        ([{"role": "user", "content": "x", "name": "Bob"}], "messages[0].name"),
        ([{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}], "messages[0].tool_calls"),
        ([{"role": "assistant", "content": "x", "refusal": "no"}], "messages[0].refusal"),
        ([{"role": "user", "content": "x", "contents": "y"}], "messages[0].contents"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0].type"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        ([{"role": "user", "content": [{"type": "text", "text": 1}]}], "messages[0].content[0].text"),
    ],
)
def test_wrong_messages_are_refused_by_place(http: httpx2.Client, messages: Any, param: str) -> None:
    error = refusal(http, CHAT, {"messages": messages})
    assert error["param"] == param
    assert param in error["message"]


def test_every_limit_is_inclusive(http: httpx2.Client) -> None:
    for fields in (
        {"temperature": 0, "top_p": 1, "presence_penalty": -2, "frequency_penalty": 2, "n": 8, "seed": 2**63 - 8},
        {"temperature": 2, "stop": ["a"] * 16, "logit_bias": {"0": -100, "1": 100}, "seed": -(2**63)},
        {"logprobs": True, "top_logprobs": 20, "max_tokens": 1, "min_p": 1, "top_k": 0, "stop": []},
    ):
        assert http.post(CHAT, json=BASE[CHAT] | fields).status_code == 200
