"""A server in a thread for tests, and a stand-in for the LLM whose answers and failures a test decides."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import openai

from tapwater.config import ServerConfig
from tapwater.engine.request import FinishReason, SamplingParams
from tapwater.errors import RequestError, TapwaterError
from tapwater.llm import Delta, TextLogprob, TokenText, Usage
from tapwater.server.app import create_app
from tapwater.server.serve import DrainingServer, bind, url

MODEL = "fake-model"


@dataclass
class FakeGeneration:
    aborted: threading.Event = field(default_factory=threading.Event)

    def abort(self) -> None:
        self.aborted.set()


@dataclass
class FakeLLM:
    """The surface of tapwater.llm.LLM: bytes are the tokens of a prompt, words those of the scripted reply.

    Each token waits for `gate`; after `fail_after` tokens the engine fails.
    """

    reply: str = "Water is made of hydrogen and oxygen."
    max_context: int = 400
    token_s: float = 0.0
    fail_after: int | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    submitted: list[tuple[list[int], SamplingParams, tuple[str, ...]]] = field(default_factory=list)
    generations: list[FakeGeneration] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    num_waiting = 0

    @property
    def num_running(self) -> int:
        return sum(thread.is_alive() for thread in self.threads)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return self.encode("".join(f"<{message['role']}>{message['content']}" for message in messages))

    def submit(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        stop: Sequence[str],
        listener: Callable[[Delta | TapwaterError], None],
    ) -> FakeGeneration:
        total = len(prompt_token_ids) + (params.max_tokens or 1)
        if total > self.max_context:
            raise RequestError(
                f"context {self.max_context}, prompt {len(prompt_token_ids)}, together {total}",
                param="prompt",
                code="context_length_exceeded",
            )
        self.submitted.append((list(prompt_token_ids), params, tuple(stop)))
        generation = FakeGeneration()
        self.generations.append(generation)
        thread = threading.Thread(target=self._run, args=(len(prompt_token_ids), params, listener, generation))
        self.threads.append(thread)
        thread.start()
        return generation

    def _run(
        self,
        prompt_tokens: int,
        params: SamplingParams,
        listener: Callable[[Delta | TapwaterError], None],
        generation: FakeGeneration,
    ) -> None:
        words = re.findall(r"\s*\S+", self.reply)
        words = words[: params.max_tokens]
        for number, word in enumerate(words, start=1):
            while not self.gate.wait(0.005):
                if generation.aborted.is_set():
                    break
            time.sleep(self.token_s)
            if generation.aborted.is_set():
                return
            if self.fail_after is not None and number > self.fail_after:
                listener(TapwaterError("the engine failed: a wire came loose"))
                return
            logprobs = () if params.logprobs is None else (token_text(words, number, params.logprobs),)
            last = number == len(words)
            cut = params.max_tokens is not None and last and words != re.findall(r"\s*\S+", self.reply)
            reason = (FinishReason.LENGTH if cut else FinishReason.STOP) if last else None
            listener(Delta(word, (number,), logprobs, reason, Usage(prompt_tokens, number, prompt_tokens // 2)))

    def close(self, drain_s: float = 0.0) -> None:
        for generation in self.generations:
            generation.abort()
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


def token_text(words: Sequence[str], number: int, count: int) -> TokenText:
    word, start = words[number - 1], len("".join(words[: number - 1]))
    top = [TextLogprob(word, word.encode(), number, -0.25)]
    top += [TextLogprob("\ufffd", b"\xf0\x9f", 100 + rank, -1.5 - rank) for rank in range(1, count)]
    return TokenText(top[0], tuple(top[:count]), start)


@dataclass(frozen=True)
class Running:
    """A server that answers at `url`."""

    url: str
    llm: Any
    server: DrainingServer
    thread: threading.Thread
    drained: list[int]  # the numbers of running answers it began to drain with

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=60)

    def connect(self) -> socket.socket:
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=10)


@contextlib.contextmanager
def running(llm: Any, config: ServerConfig | None = None, model_id: str = MODEL) -> Iterator[Running]:
    """Serve `llm` on a free port, as `tapwater serve` does, until the block ends."""
    config = config or ServerConfig(port=0, drain_s=0)
    ready = threading.Event()
    drained: list[int] = []
    with bind(config) as listener:
        app = create_app(llm, model_id=model_id, server=config)
        server = DrainingServer(app, on_ready=ready.set, on_drain=drained.append)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert ready.wait(30)
            yield Running(url(listener), llm, server, thread, drained)
        finally:
            server.handle_exit(2, None)
            server.handle_exit(2, None)
            thread.join(20)
            assert not thread.is_alive()


def eventually(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    """Wait until `condition` holds; AssertionError when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)
