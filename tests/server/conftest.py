from collections.abc import Iterator

import httpx2
import openai
import pytest

from serving import FakeLLM, Running, running


@pytest.fixture
def llm() -> Iterator[FakeLLM]:
    fake = FakeLLM()
    yield fake
    fake.gate.set()
    fake.close()


@pytest.fixture
def server(llm: FakeLLM) -> Iterator[Running]:
    with running(llm) as server:
        yield server


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, as published."""
    with server.client() as client:
        yield client


@pytest.fixture
def http(server: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=30) as http:
        yield http
