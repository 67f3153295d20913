"""Runs the service: refuses what is not safe to serve, listens, and ends within 8 seconds of SIGTERM.

On SIGTERM it takes no more connections and tells `/healthz` so; requests that are in flight have 6 seconds to finish,
then they are cancelled and undo what they left on S3. A client whose request was cut off repeats it. If S3 hangs at
that, the process ends all the same, with code 1; the next sweep of a replica finds what was left.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType

import structlog
import uvicorn
from prometheus_client import start_http_server

from core.errors import SettingsError, UnreachableError
from core.settings import Settings
from producers.service.app import Service
from producers.service.local import is_loopback
from producers.service.protocol import MAX_HEADER_BYTES, BoundedProtocol
from producers.service.tokens import Tokens

__all__ = ["serve"]

FINISH_SECONDS = 6
END_SECONDS = 7.7
KEEP_ALIVE_SECONDS = 10
BACKLOG = 1024

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=__name__)


def serve(
    settings: Settings,
    *,
    host: str,
    port: int,
    without_tokens: bool = False,
    metrics_port: int | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve on `host` and `port` (0: any that is free) until SIGTERM or Ctrl-C; `on_ready` hears the address.

    With a `metrics_port`, /metrics is on that port of the same host. Raises SettingsError without tokens, unless it
    is `without_tokens` on a loopback address; UnreachableError for a port that can't be had.
    """
    tokens = _tokens(settings, host=host, without_tokens=without_tokens)
    service = Service(settings, tokens=tokens)
    # uvicorn says much that is said better here, and quotes requests.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        service.app,
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=FINISH_SECONDS,
        backlog=BACKLOG,
    )
    with ExitStack() as stack:
        listening = stack.enter_context(_listen(host, port))
        if metrics_port is not None:
            _serve_metrics(stack, host, metrics_port)
        host_shown = f"[{host}]" if ":" in host else host
        address = f"http://{host_shown}:{listening.getsockname()[1]}"
        server = _Server(config, on_start=lambda: on_ready(address) if on_ready else None, on_stop=service.stopping)
        asyncio.run(server.serve(sockets=[listening]))


class _Server(uvicorn.Server):
    """Ends with code 0 when it was asked to: uvicorn would send itself the signal again."""

    def __init__(self, config: uvicorn.Config, *, on_start: Callable[[], None], on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_start = on_start
        self._on_stop = on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say so once requests are answered."""
        await super().startup(sockets)
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - of uvicorn
        """Stop, at the first signal; the others say nothing new."""
        if self.should_exit:
            return
        self._on_stop()
        self.should_exit = True
        # Whatever hangs: who started us kills us soon, and then nobody hears why.
        overdue = threading.Timer(END_SECONDS, _end)
        overdue.daemon = True
        overdue.start()


def _end() -> None:
    _log.warning("something hangs: the service ends without undoing what is left of uploads")
    os._exit(1)


def _tokens(settings: Settings, *, host: str, without_tokens: bool) -> Tokens | None:
    if settings.serve_tokens is not None:
        if without_tokens:
            raise SettingsError("--without-tokens with PKM_SERVE_TOKENS set: leave out one of them")
        return Tokens.read(settings.serve_tokens)
    if not without_tokens:
        raise SettingsError(
            "PKM_SERVE_TOKENS names no token: set it to NAME:TOKEN (`openssl rand -hex 32` makes one), or serve this"
            " machine alone with --without-tokens"
        )
    if not is_loopback(host):
        raise SettingsError(f"--without-tokens serves this machine alone, and {host} is not a loopback address")
    return None


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=BACKLOG
        )
    except OSError as error:
        raise UnreachableError(f"{host} port {port} can't be listened on: {error.strerror or error}") from error


def _serve_metrics(stack: ExitStack, host: str, port: int) -> None:
    try:
        server, thread = start_http_server(port, addr=host)
    except OSError as error:
        raise UnreachableError(f"{host} port {port} can't be listened on: {error.strerror or error}") from error
    stack.callback(thread.join, 1)
    stack.callback(server.server_close)
    stack.callback(server.shutdown)
