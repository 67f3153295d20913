"""Reads a request's body piece by piece, no more of it than allowed and not at any pace."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from starlette.requests import ClientDisconnect, Request

from producers.service.problems import INVALID_REQUEST, TOO_LARGE, TOO_SLOW, ProblemError

__all__ = ["pieces", "whole"]

GRACE_SECONDS = 10.0
LEAST_BYTES_PER_SECOND = 4 * 1024


async def pieces(
    request: Request, *, max_bytes: int, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[bytes]:
    """Give the body as it comes.

    A client may keep us waiting for 10 seconds, and a second more for every 4 KiB that it has sent; time that we take
    ourselves does not count. Raises ProblemError for a body that is too large (413, at once when its length says so)
    or too slow (408), ClientDisconnect when the client went away. What comes after a refusal is thrown away by the
    connection (`protocol`), since closing it at once could lose the answer.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    received, waited = 0, 0.0
    while True:
        patience = GRACE_SECONDS + received / LEAST_BYTES_PER_SECOND - waited
        if patience <= 0:
            raise _too_slow(received)
        started = clock()
        try:
            async with asyncio.timeout(patience):
                message = await request.receive()
        except TimeoutError:
            raise _too_slow(received) from None
        waited += clock() - started
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece: bytes = message.get("body", b"")
        received += len(piece)
        if received > max_bytes:
            raise _too_large(max_bytes)
        if piece:
            yield piece
        if not message.get("more_body", False):
            return


async def whole(request: Request, *, max_bytes: int) -> bytes:
    """Return the whole body. Raises as `pieces`, and ProblemError (400) for one that is empty."""
    body = b"".join([piece async for piece in pieces(request, max_bytes=max_bytes)])
    if not body:
        raise ProblemError(INVALID_REQUEST, "the request has no body")
    return body


def _too_large(max_bytes: int) -> ProblemError:
    return ProblemError(TOO_LARGE, f"the body has more than {max_bytes:,} bytes")


def _too_slow(received: int) -> ProblemError:
    return ProblemError(TOO_SLOW, f"{received:,} bytes came within the time")
