"""What the endpoints share: the model, the limits and the generations in flight; lives on the event loop's thread."""

import hashlib
import time
import uuid
from collections.abc import Sequence
from http import HTTPStatus
from importlib import metadata
from typing import Any

from tapwater.config import ServerConfig
from tapwater.errors import RequestError
from tapwater.llm import LLM, Usage
from tapwater.server.errors import ApiError
from tapwater.server.generations import RETRY_AFTER_S, Generations, Job, shutting_down


class Service:
    """One served model and the requests it is working on."""

    def __init__(self, llm: LLM, model_id: str, config: ServerConfig) -> None:
        self.llm = llm
        self.model_id = model_id
        self.config = config
        self.created = int(time.time())
        self.fingerprint = "fp_" + hashlib.sha256(f"{model_id} {_version()}".encode()).hexdigest()[:12]
        self.draining = False
        self._open: set[Generations] = set()

    @property
    def unfinished(self) -> int:
        """Generations submitted for requests that have not been answered to the end."""
        return sum(len(each) for each in self._open)

    def check_model(self, model: str) -> None:
        """ApiError 404 for any model but the one served."""
        if model != self.model_id:
            raise ApiError(
                f"The model {model!r} does not exist here; this server serves {self.model_id!r}.",
                status=HTTPStatus.NOT_FOUND,
                code="model_not_found",
                param="model",
            )

    def start(self, jobs: Sequence[Job], stop: Sequence[str]) -> Generations:
        """Submit every job or none; ApiError 503 when full or going down, RequestError for what the engine refuses."""
        limit = self.config.max_waiting
        if self.draining:
            raise shutting_down()
        if len(jobs) > limit:
            raise RequestError(f"{len(jobs)} generations in one request; this server takes {limit}.", param="n")
        if self.unfinished + len(jobs) > limit:
            raise ApiError(
                f"The server is busy: {self.unfinished} generations are unfinished and its limit is {limit}; "
                "try again later.",
                status=HTTPStatus.SERVICE_UNAVAILABLE,
                code="server_busy",
                kind="server_error",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
        generations = Generations(self.llm, jobs, stop, self._open.discard)
        self._open.add(generations)
        return generations

    def stop_all(self) -> None:
        """End every request in flight with an error that says so."""
        for generations in self._open:
            generations.stop()

    def envelope(self, prefix: str, kind: str) -> dict[str, Any]:
        """The fields every response object, and every chunk of one, begins with."""
        return {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": self.model_id,
            "system_fingerprint": self.fingerprint,
        }


def usage_body(usages: Sequence[Usage], choices: int) -> dict[str, Any]:
    """The usage of some prompts with `choices` generations each, in that order; a prompt counts once.

    Besides OpenAI's fields it has DeepSeek's prompt_cache_hit_tokens and prompt_cache_miss_tokens.
    """
    prompts = usages[::choices]
    prompt_tokens = sum(usage.prompt_tokens for usage in prompts)
    cached_tokens = sum(usage.cached_tokens for usage in prompts)
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": 0},
        "prompt_cache_hit_tokens": cached_tokens,
        "prompt_cache_miss_tokens": prompt_tokens - cached_tokens,
    }


def _version() -> str:
    try:
        return metadata.version("tapwater")
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "source"
