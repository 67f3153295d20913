"""What the service says when it can't do what was asked: problem details as RFC 9457 has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.responses import Response

__all__ = [
    "CONTENT_TYPE",
    "FORBIDDEN",
    "INTERNAL",
    "INVALID_CONTENT",
    "INVALID_REQUEST",
    "KEY_REUSED",
    "KINDS",
    "METHOD_NOT_ALLOWED",
    "NOT_FOUND",
    "TOO_LARGE",
    "TOO_MANY_REQUESTS",
    "TOO_SLOW",
    "UNAUTHORIZED",
    "UNAVAILABLE",
    "UNSUPPORTED_MEDIA_TYPE",
    "Kind",
    "ProblemError",
    "answer",
]

CONTENT_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem; `meaning` tells a client what to do about it."""

    name: str
    status: int
    title: str
    meaning: str

    @property
    def uri(self) -> str:
        """The problem's type: where the reference explains it."""
        return f"/docs#{self.name}"


INVALID_REQUEST = Kind("invalid-request", 400, "Invalid request", "The request can't be read: mend it.")
UNAUTHORIZED = Kind("unauthorized", 401, "Unauthorized", "No bearer token, or one that is not known.")
FORBIDDEN = Kind(
    "forbidden", 403, "Forbidden", "Without tokens the service is for programs on its own machine, not for web pages."
)
NOT_FOUND = Kind("not-found", 404, "Not found", "There is no such note, or no such address.")
METHOD_NOT_ALLOWED = Kind("method-not-allowed", 405, "Method not allowed", "`Allow` names the methods.")
TOO_SLOW = Kind("too-slow", 408, "Too slow", "The body did not come fast enough: send it again.")
TOO_LARGE = Kind("too-large", 413, "Too large", "The body, or a part of it, is over its limit.")
UNSUPPORTED_MEDIA_TYPE = Kind("unsupported-media-type", 415, "Unsupported media type", "Send the documented type.")
INVALID_CONTENT = Kind("invalid-content", 422, "Invalid content", "`errors` names what does not fit the schema.")
KEY_REUSED = Kind(
    "idempotency-key-reused", 422, "Idempotency key reused", "The key came with other content before: use a new key."
)
TOO_MANY_REQUESTS = Kind("too-many-requests", 429, "Too many requests", "Go on after `Retry-After` seconds.")
INTERNAL = Kind("internal", 500, "Internal error", "A fault of the service: its log has the request id.")
UNAVAILABLE = Kind(
    "unavailable", 503, "Unavailable", "S3, the stream or the service is busy: repeat it after `Retry-After` seconds."
)

KINDS = (
    INVALID_REQUEST,
    UNAUTHORIZED,
    FORBIDDEN,
    NOT_FOUND,
    METHOD_NOT_ALLOWED,
    TOO_SLOW,
    TOO_LARGE,
    UNSUPPORTED_MEDIA_TYPE,
    INVALID_CONTENT,
    KEY_REUSED,
    TOO_MANY_REQUESTS,
    INTERNAL,
    UNAVAILABLE,
)


class ProblemError(Exception):
    """Ends a request with a problem; `detail` is shown to the client, so it holds no secret and nobody's content."""

    def __init__(
        self,
        kind: Kind,
        detail: str,
        *,
        errors: Sequence[Mapping[str, str]] = (),
        retry_after_seconds: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(f"{kind.title}: {detail}")
        self.kind = kind
        self.detail = detail
        self.errors = tuple(errors)
        self.retry_after_seconds = retry_after_seconds
        self.headers = dict(headers or {})


def answer(problem: ProblemError, *, request_id: str) -> Response:
    """Return the response to a request that ended with `problem`."""
    kind, headers = problem.kind, problem.headers
    body: dict[str, Any] = {
        "type": kind.uri,
        "title": kind.title,
        "status": kind.status,
        "detail": problem.detail,
        "request_id": request_id,
    }
    if problem.errors:
        body["errors"] = problem.errors
    if kind is UNAUTHORIZED:
        headers = {**headers, "WWW-Authenticate": 'Bearer realm="pkm"'}
    if problem.retry_after_seconds is not None:
        headers = {**headers, "Retry-After": str(max(1, math.ceil(problem.retry_after_seconds)))}
    return Response(orjson.dumps(body), status_code=kind.status, headers=headers, media_type=CONTENT_TYPE)
