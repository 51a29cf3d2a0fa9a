"""POST /v1/completions."""

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from tapwater.llm import LLM, Completion, Delta, TextLogprob, TokenText
from tapwater.server.body import parse
from tapwater.server.schema import CompletionRequest
from tapwater.server.service import Service
from tapwater.server.stream import LOWEST_LOGPROB, Choice, EventStream, events, whole


async def create(service: Service, request: Request) -> Response:
    body = await parse(request, CompletionRequest)
    service.check_model(body.model)
    prompts = await run_in_threadpool(_encode, service.llm, body.prompt)
    generations = service.start([(prompt, params) for prompt in prompts for params in body.choices()], body.stop)
    envelope = service.envelope("cmpl", "text_completion")
    if not body.stream:
        return await whole(generations, request, envelope, _choice, body.n)
    chunks = Chunks(len(generations))
    return EventStream(
        events(generations, envelope, [], chunks.render, body.n, body.include_usage),
        generations,
    )


def _encode(llm: LLM, prompts: Sequence[str | list[int]]) -> list[list[int]]:
    return [llm.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]


class Chunks:
    """Renders the deltas of several choices, remembering how far the text of each has come."""

    def __init__(self, num_choices: int) -> None:
        self._offsets = [TextOffset() for _ in range(num_choices)]

    def render(self, index: int, delta: Delta) -> Iterator[Choice]:
        if delta.text or delta.logprobs or delta.finish_reason is not None:
            logprobs = _logprobs(delta.logprobs, self._offsets[index])
            yield {"index": index, "text": delta.text, "logprobs": logprobs, "finish_reason": delta.finish_reason}


class TextOffset:
    """The number of whole characters in the tokens so far; a token may end inside one."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def advance(self, token_bytes: bytes) -> int:
        """Where the text of a token with these bytes begins."""
        begin = self._characters
        self._characters += len(self._decoder.decode(token_bytes))
        return begin


def _choice(index: int, completion: Completion) -> Choice:
    return {
        "index": index,
        "text": completion.text,
        "logprobs": _logprobs(completion.logprobs, TextOffset()),
        "finish_reason": completion.finish_reason,
    }


def _logprobs(tokens: Sequence[TokenText], offset: TextOffset) -> dict[str, Any] | None:
    """OpenAI's older form: parallel lists, the alternatives of a token as a mapping from its text."""
    if not tokens:
        return None
    return {
        "tokens": [_name(token.chosen) for token in tokens],
        "token_logprobs": [_value(token.chosen) for token in tokens],
        "top_logprobs": [{_name(each): _value(each) for each in (token.chosen, *token.top)} for token in tokens],
        "text_offset": [offset.advance(token.chosen.token_bytes) for token in tokens],
    }


def _name(token: TextLogprob) -> str:
    """A token's text, or its bytes where they are no text by themselves: different tokens keep different names."""
    try:
        return token.token_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.token_bytes)


def _value(token: TextLogprob) -> float:
    return max(token.logprob, LOWEST_LOGPROB)
