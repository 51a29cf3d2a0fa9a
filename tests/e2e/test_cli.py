"""The `tapwater` command as a user runs it, with the real model: processes, pipes and signals."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest

MODEL = "smollm2-135m-instruct"


@pytest.fixture
def command(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[str]:
    """The model's file is there, so that nothing below waits for the network; the package need not be installed.

    A process started in a shell's background ignores SIGINT, and so would the children it starts.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    return [sys.executable, "-m", "tapwater"]


def test_generate_writes_only_the_completion(command: list[str]) -> None:
    call = [*command, "generate", "--prompt", "-", "--max-tokens", "6", "--temperature", "0"]
    done = subprocess.run(call, input="The capital of France is", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(" Paris")
    assert done.stdout.endswith("\n")
    assert re.fullmatch(r"6 tokens · [\d.]+ tokens/s · ended by length\n", done.stderr)


def test_a_reader_that_has_seen_enough(command: list[str]) -> None:
    """`tapwater generate | head -c 5`: no traceback, and the exit code shells give for a broken pipe."""
    call = [*command, "generate", "--prompt", "Once", "--max-tokens", "300"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(5)
        process.stdout.close()
        assert process.wait(60) == 141
        assert b"Traceback" not in process.stderr.read()


def test_ctrl_c_ends_generate_quietly(command: list[str]) -> None:
    call = [*command, "generate", "--prompt", "Once", "--max-tokens", "2000"]
    with subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.read(5)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert b"Traceback" not in process.stderr.read()


def test_ctrl_c_in_chat_stops_the_answer_not_the_program(command: list[str]) -> None:
    call = [*command, "chat", "--temperature", "0"]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(call, **pipes) as process:  # pyrefly: ignore
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(b"Write a very long story about a river.\n")
        process.stdin.flush()
        process.stdout.read(20)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(b"What is the capital of France?\n", timeout=120)
        assert process.returncode == 0
        assert b"stopped" in err
        assert b"Paris" in out


@contextlib.contextmanager
def served(command: list[str], *arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    call = [*command, "serve", "--port", "0", *arguments]
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            line = process.stderr.readline()
            assert line.startswith(f"{MODEL} answers at http://127.0.0.1:"), line
            yield process, line.split(" at ")[1].split()[0]
        finally:
            process.kill()


def test_serve_finishes_what_it_began_when_asked_to_end(command: list[str]) -> None:
    with served(command) as (process, url), openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Tell me about water."}],
            max_tokens=40,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(stream)
        next(stream)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with contextlib.suppress(httpx2.TransportError):  # a quick machine may be done by now
            assert httpx2.get(f"{url}/health").status_code == 503
        assert list(stream)[-1].choices[0].finish_reason == "length"
        assert process.wait(20) == 0
        assert process.stderr
        said = process.stderr.read()
        assert "Finishing running answers (1)" in said
        assert "Traceback" not in said


def test_a_second_signal_ends_serve_at_once(command: list[str]) -> None:
    with served(command, "server.drain_s=600") as (process, url), openai.OpenAI(base_url=f"{url}/v1", api_key="-") as c:
        stream = c.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Tell me about water."}],
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(stream)
        next(stream)
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        assert process.wait(20) == 0
