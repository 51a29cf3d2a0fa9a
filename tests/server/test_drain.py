"""Shutdown: /health says so, running answers finish, and a deadline or a second signal ends them with an error."""

import signal
import threading
import time
from collections.abc import Iterator

import httpx2
import openai
import pytest

from serving import MODEL, FakeLLM, Running, eventually, running
from tapwater.config import ServerConfig
from tapwater.errors import ConfigError
from tapwater.server.serve import bind, url

USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
def server(llm: FakeLLM, drain_s: float) -> Iterator[Running]:
    llm.reply = "word " * 40
    llm.token_s = 0.02
    with running(llm, ServerConfig(port=0, drain_s=drain_s)) as server:
        yield server


def start_streams(server: Running, client: openai.OpenAI) -> list[openai.Stream]:
    streams = [client.chat.completions.create(model=MODEL, messages=USER, stream=True) for _ in range(2)]
    for stream in streams:
        next(stream)
    return streams


def terminate(server: Running) -> None:
    server.server.handle_exit(signal.SIGTERM, None)


@pytest.mark.parametrize("drain_s", [30.0])
def test_running_answers_finish(server: Running, client: openai.OpenAI) -> None:
    streams = start_streams(server, client)
    terminate(server)
    with httpx2.Client(base_url=server.url) as http:
        eventually(lambda: http.get("/health").status_code == 503)
        assert http.get("/health").json()["status"] == "draining"
        refused = http.post("/v1/chat/completions", json={"model": MODEL, "messages": USER})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "server_shutting_down"
    for stream in streams:
        chunks = list(stream)
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert sum(bool(chunk.choices[0].delta.content) for chunk in chunks) == 40
    server.thread.join(5)
    assert not server.thread.is_alive()
    assert server.drained == [2]
    with pytest.raises(ConnectionRefusedError):
        server.connect()


@pytest.mark.parametrize("drain_s", [0.2])
def test_the_deadline_ends_them_with_an_error(server: Running, client: openai.OpenAI, llm: FakeLLM) -> None:
    streams = start_streams(server, client)
    terminate(server)
    began = time.monotonic()
    for stream in streams:
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
    server.thread.join(5)
    assert not server.thread.is_alive()
    assert time.monotonic() - began < 3
    eventually(lambda: llm.num_running == 0)


@pytest.mark.parametrize("drain_s", [30.0])
def test_a_second_signal_ends_them_at_once(server: Running, client: openai.OpenAI, llm: FakeLLM) -> None:
    (stream, _) = start_streams(server, client)
    terminate(server)
    terminate(server)
    began = time.monotonic()
    with pytest.raises(openai.APIError, match="shutting down"):
        list(stream)
    server.thread.join(5)
    assert not server.thread.is_alive()
    assert time.monotonic() - began < 3
    eventually(lambda: llm.num_running == 0)


@pytest.mark.parametrize("drain_s", [30.0])
def test_whole_answers_hear_of_it_too(server: Running, client: openai.OpenAI, llm: FakeLLM) -> None:
    heard: list[openai.APIStatusError] = []

    def ask() -> None:
        try:
            client.chat.completions.create(model=MODEL, messages=USER)
        except openai.APIStatusError as error:
            heard.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: llm.num_running == 1)
    terminate(server)
    terminate(server)
    asking.join(5)
    assert [error.status_code for error in heard] == [503]


@pytest.mark.parametrize("drain_s", [30.0])
def test_an_idle_server_ends_at_once(server: Running) -> None:
    with server.client() as client:
        client.models.list()  # leaves a kept connection behind
        terminate(server)
        server.thread.join(3)
        assert not server.thread.is_alive()
        assert server.drained == []


def test_a_taken_port_is_one_clear_error() -> None:
    with bind(ServerConfig(port=0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"server.port {port} on 127.0.0.1: Address already in use"):
            bind(ServerConfig(port=port))


@pytest.mark.parametrize("host", ["192.0.2.1", "a" * 70 + ".example"])
def test_a_wrong_host_is_one_clear_error(host: str) -> None:
    with pytest.raises(ConfigError, match=r"server\.host"):
        bind(ServerConfig(host=host, port=0))


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_url_of_either_family(host: str, expected: str) -> None:
    with bind(ServerConfig(host=host, port=0)) as listener:
        assert url(listener).startswith(expected)


def test_a_host_that_is_none_of_this_machine() -> None:
    with pytest.raises(ConfigError, match=r"server\.host 'no\.such\.host\.invalid'"):
        bind(ServerConfig(host="no.such.host.invalid"))
