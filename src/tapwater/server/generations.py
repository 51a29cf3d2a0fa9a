"""The bridge between the engine's thread and the event loop: the generations one HTTP request asked for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from http import HTTPStatus
from types import TracebackType

from tapwater.engine.request import FinishReason, SamplingParams
from tapwater.errors import TapwaterError
from tapwater.llm import LLM, Completion, Delta, Generation, Usage, joined
from tapwater.server.errors import ApiError

RETRY_AFTER_S = 5

Job = tuple[Sequence[int], SamplingParams]  # a prompt's token ids and how to continue them


class Generations:
    """Submits every job or, on an error, none; a context manager that aborts on exit whatever has not finished.

    The engine's thread puts deltas into a queue of this event loop; iteration yields them as (job index, delta) and
    raises the TapwaterError that ended a generation.
    """

    def __init__(self, llm: LLM, jobs: Sequence[Job], stop: Sequence[str], on_close: Callable[["Generations"], None]):
        self.usages = [Usage(len(prompt), 0, 0) for prompt, _ in jobs]
        self._loop = asyncio.get_running_loop()
        self._arrivals: asyncio.Queue[tuple[int, Delta | TapwaterError]] = asyncio.Queue()
        self._handles: list[Generation] = []
        self._on_close = on_close
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for index, (prompt, params) in enumerate(jobs):
                self._handles.append(llm.submit(prompt, params, stop, partial(self._deliver, index)))
            undo.pop_all()

    def _deliver(self, index: int, item: Delta | TapwaterError) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended and nobody reads any more
            self._loop.call_soon_threadsafe(self._arrivals.put_nowait, (index, item))

    async def __aiter__(self) -> AsyncIterator[tuple[int, Delta]]:
        unfinished = len(self._handles)
        while unfinished:
            index, item = await self._arrivals.get()
            if isinstance(item, TapwaterError):
                raise item
            if item.finish_reason is FinishReason.ABORT:
                raise shutting_down()
            self.usages[index] = item.usage
            unfinished -= item.finish_reason is not None
            yield index, item

    async def completions(self) -> list[Completion]:
        """Every generation whole, in the order of the jobs."""
        deltas: list[list[Delta]] = [[] for _ in self._handles]
        async for index, delta in self:
            deltas[index].append(delta)
        return [joined(each) for each in deltas]

    def stop(self) -> None:
        """Make the iteration raise: the server is going down."""
        self._arrivals.put_nowait((0, shutting_down()))

    def close(self) -> None:
        for handle in self._handles:
            handle.abort()
        self._on_close(self)

    def __len__(self) -> int:
        return len(self._handles)

    def __enter__(self) -> "Generations":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


def shutting_down() -> ApiError:
    return ApiError(
        "The server is shutting down; try again later.",
        status=HTTPStatus.SERVICE_UNAVAILABLE,
        code="server_shutting_down",
        kind="server_error",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )
