"""The engine's thread: requests come in from any thread, tokens go out through each request's listener."""

import atexit
import logging
import threading
from collections import deque
from collections.abc import Callable

import torch

from tapwater.engine.engine import Engine
from tapwater.engine.request import FinishReason, Request, RequestFailure, TokenOutput
from tapwater.errors import RequestError, TapwaterError

Listener = Callable[[TokenOutput | TapwaterError], None]

log = logging.getLogger(__name__)


class EngineError(TapwaterError):
    """The engine failed while it computed; the requests it held are lost, the engine goes on."""


class EngineLoop:
    """Steps an engine while it has work. Listeners run in this thread and must not block.

    `abort` and `submit` may be called from anywhere; the engine itself is touched by this thread alone.
    """

    def __init__(self, engine: Engine, threads: int) -> None:
        self.engine = engine
        self._threads = threads
        self._wake = threading.Condition()
        self._inbox: deque[tuple[Request, Listener]] = deque()
        self._aborted: set[Request] = set()
        self._listeners: dict[int, tuple[Request, Listener]] = {}
        self._draining = False
        self._ending = False
        self._thread = threading.Thread(target=self._run, name="tapwater-engine", daemon=True)
        self._thread.start()
        # an interpreter that exits while this thread is inside torch would crash
        atexit.register(self.close, 0.0)

    @property
    def num_running(self) -> int:
        return len(self.engine.scheduler.running)

    @property
    def num_waiting(self) -> int:
        return len(self.engine.scheduler.waiting) + len(self._inbox)

    def submit(self, request: Request, listener: Listener) -> None:
        """Queue a request; RequestError once the loop is closing."""
        with self._wake:
            if self._draining:
                raise RequestError("the engine is shutting down", code="shutting_down")
            self._inbox.append((request, listener))
            self._wake.notify()

    def abort(self, request: Request) -> None:
        """End a request soon; its listener hears a last, tokenless word only if it had not ended."""
        with self._wake:
            if self._thread.is_alive():
                self._aborted.add(request)
            self._wake.notify()

    def close(self, drain_s: float) -> None:
        """Admit nothing more, let requests finish for `drain_s` seconds, abort the rest, end the thread."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("EngineLoop.close waits for the engine's thread: it cannot be called from a listener")
        with self._wake:
            self._draining = True
            self._wake.notify()
        self._thread.join(timeout=max(0.0, drain_s))
        with self._wake:
            self._ending = True
            self._wake.notify()
        self._thread.join()
        atexit.unregister(self.close)

    @torch.inference_mode()
    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        while self._take_inbox():
            try:
                outputs = self.engine.step() if self.engine.has_work else []
            except Exception as error:
                log.exception("engine step failed")
                for request, _ in list(self._listeners.values()):
                    self._end(request, EngineError(f"the engine failed: {error}"))
                continue
            for output in outputs:
                self._deliver(output)

    def _take_inbox(self) -> bool:
        """Wait for work, admit and abort what was asked; False when the loop is to end."""
        with self._wake:
            while not (self._inbox or self._aborted or self.engine.has_work or self._draining):
                self._wake.wait()
            arrived, self._inbox = list(self._inbox), deque()
            aborted, self._aborted = self._aborted, set()
            draining, ending = self._draining, self._ending
        for request, listener in arrived:
            self._listeners[request.request_id] = (request, listener)
            self.engine.add(request)
        if ending:
            aborted = {request for request, _ in self._listeners.values()}
        for request in aborted:
            if request.request_id in self._listeners:
                self._end(request, RequestError("the request was aborted", code="aborted"))
        return not (draining and not self.engine.has_work)

    def _deliver(self, output: TokenOutput | RequestFailure) -> None:
        request, listener = self._listeners[output.request_id]
        if isinstance(output, RequestFailure):
            self._end(request, EngineError(output.message))
            return
        try:
            listener(output)
        except Exception as error:
            log.exception("the listener of request %d failed", output.request_id)
            self._end(request, EngineError(f"the answer could not be delivered: {error}"))
        if request.finish_reason is not None:
            self._listeners.pop(output.request_id, None)

    def _end(self, request: Request, error: TapwaterError) -> None:
        """Free a request that will get no further token and tell its listener why."""
        _, listener = self._listeners.pop(request.request_id)
        self.engine.finish(request, FinishReason.ABORT)
        try:
            listener(error)
        except Exception:
            log.exception("the listener of request %d failed", request.request_id)
