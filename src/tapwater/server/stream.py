"""How an answer leaves: whole, or as server-sent events; either way a client that goes away ends its generations."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from tapwater.errors import TapwaterError
from tapwater.llm import Completion, Delta
from tapwater.server.errors import CLIENT_CLOSED_REQUEST, error_body
from tapwater.server.generations import Generations
from tapwater.server.service import usage_body

Choice = dict[str, Any]
LOWEST_LOGPROB = -9999.0  # OpenAI's stand-in for minus infinity, which JSON cannot say


class EventStream(StreamingResponse):
    """A stream of server-sent events that owns its generations, even when the client left before the first event."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], generations: Generations) -> None:
        super().__init__(events, headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._generations = generations

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._generations:
            await super().__call__(scope, receive, send)


async def events(
    generations: Generations,
    envelope: dict[str, Any],
    opening: Iterable[Choice],
    render: Callable[[int, Delta], Iterable[Choice]],
    num_choices: int,
    include_usage: bool,
) -> AsyncIterator[bytes]:
    """The chunks of one answer: `opening`, what `render` makes of each delta, usage when asked for, and [DONE].

    An error on the way is sent as an event of its own and ends the stream. No event has an `id:` line: clients
    dispatch an empty event when a comment follows one.
    """
    pending: dict[str, None] = {"usage": None} if include_usage else {}

    def chunk(choice: Choice) -> bytes:
        return event(envelope | {"choices": [choice]} | pending)

    for choice in opening:
        yield chunk(choice)
    try:
        async for index, delta in generations:
            for choice in render(index, delta):
                yield chunk(choice)
    except TapwaterError as error:
        yield event(error_body(error))
        return
    if include_usage:
        yield event(envelope | {"choices": [], "usage": usage_body(generations.usages, num_choices)})
    yield b"data: [DONE]\n\n"


def event(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


async def whole(
    generations: Generations,
    request: Request,
    envelope: dict[str, Any],
    render: Callable[[int, Completion], Choice],
    num_choices: int,
) -> Response:
    """The whole answer in one JSON body."""
    with generations:
        answer = asyncio.ensure_future(generations.completions())
        departure = asyncio.ensure_future(_client_left(request))
        try:
            await asyncio.wait({answer, departure}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                return Response(status_code=CLIENT_CLOSED_REQUEST)
            choices = [render(index, completion) for index, completion in enumerate(answer.result())]
        finally:
            answer.cancel()
            departure.cancel()
    return JSONResponse(envelope | {"choices": choices, "usage": usage_body(generations.usages, num_choices)})


async def _client_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
