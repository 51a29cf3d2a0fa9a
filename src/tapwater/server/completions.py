"""POST /v1/completions."""

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
    return EventStream(
        events(generations, envelope, [], _chunks, body.n, body.include_usage),
        generations,
    )


def _encode(llm: LLM, prompts: Sequence[str | list[int]]) -> list[list[int]]:
    return [llm.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]


def _chunks(index: int, delta: Delta) -> Iterator[Choice]:
    if delta.text or delta.logprobs or delta.finish_reason is not None:
        yield {
            "index": index,
            "text": delta.text,
            "logprobs": _logprobs(delta.logprobs),
            "finish_reason": delta.finish_reason,
        }


def _choice(index: int, completion: Completion) -> Choice:
    return {
        "index": index,
        "text": completion.text,
        "logprobs": _logprobs(completion.logprobs),
        "finish_reason": completion.finish_reason,
    }


def _logprobs(tokens: Sequence[TokenText]) -> dict[str, Any] | None:
    """OpenAI's older form: parallel lists, the alternatives of a token as a mapping from its text."""
    if not tokens:
        return None
    return {
        "tokens": [_name(token.chosen) for token in tokens],
        "token_logprobs": [_value(token.chosen) for token in tokens],
        "top_logprobs": [{_name(each): _value(each) for each in (token.chosen, *token.top)} for token in tokens],
        "text_offset": [token.start for token in tokens],
    }


def _name(token: TextLogprob) -> str:
    """A token's text, or its bytes where they are no text by themselves: different tokens keep different names."""
    try:
        return token.token_bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.token_bytes)


def _value(token: TextLogprob) -> float:
    return max(token.logprob, LOWEST_LOGPROB)
