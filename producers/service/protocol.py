"""HTTP on a connection, for clients that can't be trusted to be quick: uvicorn's own waits for a header for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import orjson
from uvicorn.protocols.http.h11_impl import H11Protocol

from producers.service.problems import CONTENT_TYPE, INVALID_REQUEST

__all__ = ["MAX_HEADER_BYTES", "BoundedProtocol"]

MAX_HEADER_BYTES = 16 * 1024
HEADER_SECONDS = 10.0
MAX_CONNECTIONS = 2_048


class BoundedProtocol(H11Protocol):
    """Closes a connection that has not sent a whole header for 10 seconds, or goes on with a body after its answer.

    Of more than 2,048 connections the newest are closed at once.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a header."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing."""
        self._stop_waiting()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Stop waiting once a request is there."""
        super().handle_events()
        if self._answering:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Wait for the next header."""
        super().on_response_complete()
        if not self._answering:
            self._wait()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, in the form of every other problem."""
        if self.conn.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            self.transport.close()
            return
        body = {
            "type": INVALID_REQUEST.uri,
            "title": INVALID_REQUEST.title,
            "status": INVALID_REQUEST.status,
            "detail": msg,
            "request_id": "",
        }
        content = orjson.dumps(body)
        headers = [
            ("Content-Type", CONTENT_TYPE),
            ("Content-Length", str(len(content))),
            ("Connection", "close"),
        ]
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=content), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait(self) -> None:
        self._stop_waiting()
        self._overdue = self.loop.call_later(HEADER_SECONDS, self._close_overdue)

    def _stop_waiting(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _close_overdue(self) -> None:
        if not self._answering:
            self.transport.close()
