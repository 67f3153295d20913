"""Gives each request an id, its answer the usual headers, and the log and the figures a line of it."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from producers.service import figures

__all__ = ["GONE_STATUS", "Observed"]

GONE_STATUS = 499
"""What the log and the figures say of a client that did not wait for its answer."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_POLICY = b"default-src 'none'; frame-ancestors 'none'"

_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=__name__)


class Observed:
    """Wraps an application; its handlers find `request_id` in the request's state, and leave `route` and `owner`.

    What is logged are these, method, status and time: no path, no header, no content.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Request(scope).headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        started, status = time.monotonic(), GONE_STATUS

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_headers(message, request_id)]
            await send(message)

        figures.IN_FLIGHT.inc()
        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            figures.IN_FLIGHT.dec()
            seconds, route = time.monotonic() - started, state.get("route", "other")
            figures.REQUESTS.labels(route=route, status=str(status)).inc()
            figures.SECONDS.labels(route=route).observe(seconds)
            _log.info(
                "answered",
                request_id=request_id,
                method=scope["method"] if scope["method"] in _METHODS else "other",
                route=route,
                status=status,
                seconds=round(seconds, 4),
                owner=state.get("owner"),
            )


def _headers(message: Message, request_id: str) -> list[tuple[bytes, bytes]]:
    headers = [
        (b"x-request-id", request_id.encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-store"),
    ]
    if not any(name.lower() == b"content-security-policy" for name, _ in message["headers"]):
        headers.append((b"content-security-policy", _POLICY))
    return headers
