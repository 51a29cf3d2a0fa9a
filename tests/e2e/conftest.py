"""The real server with the real model, once for all end-to-end tests."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from serving import Running, running
from tapwater.config import EngineConfig, ServerConfig
from tapwater.llm import LLM

MODEL = "smollm2-135m-instruct"


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Iterator[LLM]:
    llm = LLM.load(smollm2_path, EngineConfig())
    yield llm
    llm.close()


@pytest.fixture(scope="session")
def smollm2_server(smollm2: LLM) -> Iterator[Running]:
    with running(smollm2, ServerConfig(port=0, drain_s=0), MODEL) as server:
        yield server


@pytest.fixture
def client(smollm2_server: Running) -> Iterator[openai.OpenAI]:
    """OpenAI's own client, as published."""
    with smollm2_server.client() as client:
        yield client
