"""Running the application: a socket taken before the model loads, and a shutdown that lets answers finish."""

import errno
import math
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from tapwater.config import ServerConfig
from tapwater.errors import ConfigError
from tapwater.llm import LLM
from tapwater.server.app import create_app
from tapwater.server.service import Service

LISTEN_BACKLOG = 2048  # uvicorn's default
LAST_WORDS_S = 5  # how long aborted answers may take to send their error


def bind(server: ServerConfig) -> socket.socket:
    """A socket that listens on server.host and server.port; ConfigError when that address is not to be had.

    It listens at once, since another process may bind an address that nobody listens on yet.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            server.host, server.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"server.host {server.host!r}: {getattr(error, 'strerror', None) or error}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(LISTEN_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"server.host {server.host!r} is not an address of this machine") from None
        raise ConfigError(
            f"server.port {server.port} on {server.host}: {error.strerror}; choose another with server.port=..."
        ) from None
    return listener


def url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def run_server(
    llm: LLM,
    listener: socket.socket,
    *,
    model_id: str,
    server: ServerConfig,
    on_ready: Callable[[str], None],
    on_drain: Callable[[int], None],
) -> None:
    """Serve until SIGINT or SIGTERM; `on_ready` is given the URL once requests are accepted.

    The first signal starts draining: /health turns 503 and new generations are refused while running ones get
    server.drain_s to finish (`on_drain` is given their number). A second signal, or the end of that time, ends them
    with an error.
    """
    app = create_app(llm, model_id=model_id, server=server)
    DrainingServer(app, on_ready=lambda: on_ready(url(listener)), on_drain=on_drain).run(sockets=[listener])


class DrainingServer(uvicorn.Server):
    """uvicorn with a drain before its shutdown, during which the socket still answers /health."""

    def __init__(self, app: FastAPI, *, on_ready: Callable[[], None], on_drain: Callable[[int], None]) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=LAST_WORDS_S,
        )
        super().__init__(config)
        self._service: Service = app.state.service
        self._on_ready = on_ready
        self._on_drain = on_drain
        self._num_signals = 0
        self._deadline = math.inf

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._num_signals += 1  # and no more: this runs between any two instructions of the event loop

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second; True ends the server."""
        service = self._service
        if self._num_signals and not service.draining:
            service.draining = True
            self._deadline = time.monotonic() + service.config.drain_s
            if service.unfinished:
                self._on_drain(service.unfinished)
        if service.draining:
            overdue = self._num_signals > 1 or time.monotonic() >= self._deadline
            if overdue:
                service.stop_all()
            self.should_exit = overdue or not service.unfinished
        return await super().on_tick(counter)
