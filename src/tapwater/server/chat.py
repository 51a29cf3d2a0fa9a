"""POST /v1/chat/completions."""

from collections.abc import Iterator, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from tapwater.errors import RequestError
from tapwater.llm import Completion, Delta, TextLogprob, TokenText
from tapwater.server.body import parse
from tapwater.server.schema import ChatRequest
from tapwater.server.service import Service
from tapwater.server.stream import LOWEST_LOGPROB, Choice, EventStream, events, whole


async def create(service: Service, request: Request) -> Response:
    body = await parse(request, ChatRequest)
    service.check_model(body.model)
    messages = [message.rendered() for message in body.messages]
    prompt = await run_in_threadpool(service.llm.encode_chat, messages)
    try:
        generations = service.start([(prompt, params) for params in body.choices()], body.stop)
    except RequestError as error:  # the engine knows a prompt, the client sent messages
        param = "messages" if error.param == "prompt" else error.param
        raise RequestError(str(error), param=param, code=error.code) from None
    if not body.stream:
        return await whole(generations, request, service.envelope("chatcmpl", "chat.completion"), _choice, body.n)
    opening = [_chunk(index, {"role": "assistant", "content": "", "refusal": None}) for index in range(body.n)]
    envelope = service.envelope("chatcmpl", "chat.completion.chunk")
    return EventStream(
        events(generations, envelope, opening, _chunks, body.n, body.include_usage),
        generations,
    )


def _choice(index: int, completion: Completion) -> Choice:
    return {
        "index": index,
        "message": {"role": "assistant", "content": completion.text, "refusal": None},
        "logprobs": _logprobs(completion.logprobs),
        "finish_reason": completion.finish_reason,
    }


def _chunks(index: int, delta: Delta) -> Iterator[Choice]:
    if delta.text or delta.logprobs:
        yield _chunk(index, {"content": delta.text}, logprobs=_logprobs(delta.logprobs))
    if delta.finish_reason is not None:
        yield _chunk(index, {}, finish_reason=delta.finish_reason)


def _chunk(index: int, delta: dict[str, Any], logprobs: Any = None, finish_reason: str | None = None) -> Choice:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(tokens: Sequence[TokenText]) -> dict[str, Any] | None:
    if not tokens:
        return None
    content = [_logprob(token.chosen) | {"top_logprobs": [_logprob(each) for each in token.top]} for token in tokens]
    return {"content": content, "refusal": None}


def _logprob(token: TextLogprob) -> dict[str, Any]:
    return {
        "token": token.token,
        "logprob": max(token.logprob, LOWEST_LOGPROB),
        "bytes": list(token.token_bytes),
    }
