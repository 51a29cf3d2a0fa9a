"""A client that goes away ends its generations at once, whatever the server is doing for it."""

import json
import socket
import struct
import threading
from collections.abc import Callable

import pytest

from serving import MODEL, FakeLLM, Running, eventually

BODY = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "n": 2}


def send(server: Running, fields: dict[str, object]) -> socket.socket:
    body = json.dumps(BODY | fields).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(body)}"
    connection = server.connect()
    connection.sendall(head.encode() + b"\r\n\r\n" + body)
    return connection


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN, as a killed client does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@pytest.mark.parametrize("leave", [socket.socket.close, reset])
@pytest.mark.parametrize("stream", [False, True])
def test_before_the_first_token(server: Running, llm: FakeLLM, stream: bool, leave: Callable) -> None:
    llm.gate.clear()
    connection = send(server, {"stream": stream})
    eventually(lambda: llm.num_running == 2)
    leave(connection)
    eventually(lambda: llm.num_running == 0)
    assert all(generation.aborted.is_set() for generation in llm.generations)


def test_in_the_middle_of_a_stream(server: Running, llm: FakeLLM) -> None:
    llm.reply = "word " * 1000
    llm.token_s = 0.02
    with send(server, {"stream": True}) as connection:
        received = b""
        while received.count(b"word") < 3:
            received += connection.recv(4096)
    eventually(lambda: llm.num_running == 0)


def test_while_the_prompt_is_encoded(server: Running, llm: FakeLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is gone before the stream begins: nothing iterates it, and still nothing keeps running."""
    encoding, encoded = threading.Event(), threading.Event()

    def slow(messages: object) -> list[int]:
        encoding.set()
        assert encoded.wait(10)
        return [1, 2, 3]

    monkeypatch.setattr(llm, "encode_chat", slow)
    llm.gate.clear()
    connection = send(server, {"stream": True})
    assert encoding.wait(10)
    connection.close()
    encoded.set()
    eventually(lambda: len(llm.generations) == 2)
    eventually(lambda: llm.num_running == 0)


def test_in_the_middle_of_the_body(server: Running, llm: FakeLLM, capfd: pytest.CaptureFixture[str]) -> None:
    with server.connect() as connection:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99"
        connection.sendall(head.encode() + b'\r\n\r\n{"model"')
    with send(server, {"n": 1}) as connection:  # the server lives
        assert b"200 OK" in connection.recv(4096)
    assert "Traceback" not in capfd.readouterr().err


def test_a_finished_answer_is_not_aborted_by_a_kept_connection(server: Running, llm: FakeLLM) -> None:
    with server.client() as client:
        for _ in range(3):
            client.chat.completions.create(**BODY)
    assert llm.num_running == 0
    assert server.server.config.app.state.service.unfinished == 0
