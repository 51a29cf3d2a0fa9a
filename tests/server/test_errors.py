"""Whatever is sent, the answer is one clear error in OpenAI's shape and the server stays up."""

import json
from collections.abc import Iterator

import httpx2
import openai
import pytest

from serving import MODEL, FakeLLM, Running, eventually, running
from tapwater.config import ServerConfig
from tapwater.server.body import MAX_BODY_BYTES

CHAT = "/v1/chat/completions"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
JSON = {"Content-Type": "application/json"}


@pytest.fixture(autouse=True)
def still_up(server: Running, llm: FakeLLM) -> Iterator[None]:
    """After each test the server answers a plain request."""
    yield
    llm.fail_after = None
    llm.gate.set()
    assert httpx2.post(server.url + CHAT, json=BODY).status_code == 200


def error(response: httpx2.Response, status: int) -> dict[str, str | None]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()["error"]
    assert body.keys() == {"message", "type", "param", "code"}
    return body


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b'{"model": "m",}', "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"a": ' + b"[" * 100_000, "invalid_json"),
        (b"[]", "invalid_type"),
        (b"null", "invalid_type"),
        (b'"model"', "invalid_type"),
        (json.dumps(BODY | {"temperature": float("nan")}).encode(), "invalid_value"),
        (json.dumps(BODY | {"temperature": float("inf")}).encode(), "invalid_value"),
        (b'{"model": "m", "temperature": 1e999}', "invalid_value"),
        (json.dumps(BODY | {"messages": [{"role": "user", "content": "\ud800"}]}).encode(), "invalid_json"),
        (json.dumps(BODY | {"stop": "\udc00"}).encode(), "invalid_json"),
        (b'{"model": "m", "max_tokens": ' + b"9" * 5000 + b"}", "invalid_json"),
    ],
)
def test_malformed_bodies(http: httpx2.Client, content: bytes, code: str) -> None:
    assert error(http.post(CHAT, content=content, headers=JSON), 400)["code"] == code


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "application/xml"])
def test_only_json_is_read(http: httpx2.Client, content_type: str) -> None:
    response = http.post(CHAT, content=json.dumps(BODY), headers={"Content-Type": content_type})
    assert "application/json" in error(response, 415)["message"]


def test_a_charset_is_tolerated(http: httpx2.Client) -> None:
    headers = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert http.post(CHAT, content=json.dumps(BODY), headers=headers).status_code == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_oversized_body(http: httpx2.Client, chunked: bool) -> None:
    body = json.dumps(BODY | {"user": "x" * MAX_BODY_BYTES}).encode()
    content = (body[i : i + 65536] for i in range(0, len(body), 65536)) if chunked else body
    assert str(MAX_BODY_BYTES) in error(http.post(CHAT, content=content, headers=JSON), 413)["message"]


def test_unknown_paths_and_methods(http: httpx2.Client) -> None:
    assert error(http.get("/v1/nothing"), 404)["code"] == "not_found"
    response = http.get(CHAT)
    assert error(response, 405)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_model(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=BODY["messages"], stream=stream)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert MODEL in caught.value.message
    assert "gpt-4o" in caught.value.message


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_past_the_context_is_refused_with_counts(client: openai.OpenAI, llm: FakeLLM, stream: bool) -> None:
    messages = [{"role": "user", "content": "x" * 390}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=messages, max_tokens=9, stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    for count in (400, 396, 405):
        assert str(count) in caught.value.message
    assert llm.submitted == []


def test_one_refused_prompt_of_several_stops_the_others(client: openai.OpenAI, llm: FakeLLM) -> None:
    llm.gate.clear()
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model=MODEL, prompt=["fits", "x" * 500])
    eventually(lambda: llm.num_running == 0)


def test_engine_failure_is_a_500(client: openai.OpenAI, llm: FakeLLM) -> None:
    llm.fail_after = 2
    with pytest.raises(openai.InternalServerError, match="a wire came loose") as caught:
        client.chat.completions.create(model=MODEL, messages=BODY["messages"])
    assert caught.value.type == "server_error"


def test_engine_failure_in_a_stream_comes_in_band(client: openai.OpenAI, llm: FakeLLM) -> None:
    llm.fail_after = 2
    seen = []
    with pytest.raises(openai.APIError, match="a wire came loose"):
        for chunk in client.chat.completions.create(model=MODEL, messages=BODY["messages"], stream=True, n=2):
            seen += [chunk.choices[0].delta.content]
    assert "Water" in seen
    eventually(lambda: llm.num_running == 0)


def test_engine_failure_in_a_stream_ends_it_without_done(http: httpx2.Client, llm: FakeLLM) -> None:
    llm.fail_after = 0
    text = http.post(CHAT, json=BODY | {"stream": True}).text
    last = text.strip().split("\n\n")[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["type"] == "server_error"
    assert "[DONE]" not in text


def test_an_unforeseen_exception_is_a_500_without_details(
    http: httpx2.Client, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(messages: object) -> list[int]:
        raise ZeroDivisionError("secret path /home")

    with monkeypatch.context() as patch:
        patch.setattr(llm, "encode_chat", broken)
        body = error(http.post(CHAT, json=BODY), 500)
    assert (body["type"], body["code"]) == ("server_error", "internal_error")
    assert "secret" not in body["message"]


def test_full_server_answers_503_with_retry_after(llm: FakeLLM) -> None:
    llm.gate.clear()
    config = ServerConfig(port=0, drain_s=0, max_waiting=3)
    with running(llm, config) as server, httpx2.Client(base_url=server.url, timeout=30) as http:
        busy = BODY | {"stream": True, "n": 2}
        with http.stream("POST", CHAT, json=busy) as first:
            assert first.status_code == 200
            response = http.post(CHAT, json=busy)
            assert error(response, 503)["code"] == "server_busy"
            assert int(response.headers["retry-after"]) > 0
            with http.stream("POST", CHAT, json=BODY | {"stream": True}) as third:  # one more has room
                assert third.status_code == 200
                assert http.post(CHAT, json=BODY).status_code == 503
                assert http.get("/health").json()["running"] == 3
        assert error(http.post(CHAT, json=BODY | {"n": 4}), 400)["param"] == "n"
        llm.gate.set()
        eventually(lambda: llm.num_running == 0)
        assert http.post(CHAT, json=busy).status_code == 200


def test_health(http: httpx2.Client, server: Running) -> None:
    assert http.get("/health").json() == {"status": "ok", "model": MODEL, "running": 0, "waiting": 0}
    assert http.head("/health").status_code == 200
