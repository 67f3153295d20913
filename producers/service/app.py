"""The ASGI application: its addresses, who may use them, how many at a time, and what an error is answered."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress

import orjson
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from core import aws
from core.errors import PkmError
from core.settings import Settings
from producers.service import openapi, page, problems
from producers.service.batches import Announcer, put_on_stream
from producers.service.endpoints import Endpoints, json_answer
from producers.service.file_uploads import FileUploads
from producers.service.gate import Gate
from producers.service.health import Readiness, checks_of
from producers.service.intake import Intake
from producers.service.leftovers import sweep_now_and_then
from producers.service.local import host_of, is_loopback
from producers.service.observed import GONE_STATUS, Observed
from producers.service.problems import ProblemError
from producers.service.rates import Rates
from producers.service.states import StateReader
from producers.service.stored import Stored
from producers.service.tokens import Tokens
from producers.uploads import Uploads

__all__ = ["Service"]

ANYBODY = "local"
"""Who everybody is where there are no tokens."""
STATES_AT_ONCE = 8
WAITING_FOR_A_PLACE = 1_000
WAITING_SECONDS = 30.0
RETRY_SECONDS = 5.0
KINESIS_ATTEMPTS = 2
UNDO_SECONDS, CLOSE_SECONDS = 1.0, 0.3
"""What the end may take once requests are over: together with the time for those, less than 8 seconds."""

Handler = Callable[[Request, str], Awaitable[Response]]
Answering = Callable[[Request], Awaitable[Response]]
_log: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=__name__)


class Service:
    """The application as `app`; without `tokens` everybody may use it, so only where nobody else can reach it.

    Touches no network before it is started. `stopping` makes `/healthz` send clients to other replicas.
    """

    def __init__(self, settings: Settings, *, tokens: Tokens | None) -> None:
        self._settings = settings
        self._tokens = tokens
        self._rates = Rates(settings.serve_requests_per_second, settings.serve_burst)
        self._readiness = Readiness(checks_of(settings))
        self._handlers: list[Endpoints] = []
        self._document = openapi.document(with_tokens=tokens is not None)
        self.app: ASGIApp = Observed(self._routed())

    def stopping(self) -> None:
        """Say that this replica takes no more."""
        self._readiness.stopping = True

    def _routed(self) -> Starlette:
        settings = self._settings
        endpoints: dict[str, tuple[str, Answering]] = {
            "/v1/notes": ("POST", self._guarded(lambda handlers: handlers.post_note, places=settings.serve_notes)),
            "/v1/files": ("POST", self._guarded(lambda handlers: handlers.post_file, places=settings.serve_uploads)),
            "/v1/notes/{note_id}": ("GET", self._guarded(lambda handlers: handlers.get_note, places=STATES_AT_ONCE)),
            "/healthz": ("GET", self._ready),
            "/healthz/live": ("GET", _live),
            "/openapi.json": ("GET", _fixed(orjson.dumps(self._document), "application/json")),
            "/docs": ("GET", _page(page.reference(self._document))),
        }
        return Starlette(
            routes=[
                Route(path, _named(path, endpoint), methods=[method])
                for path, (method, endpoint) in endpoints.items()
            ],
            exception_handlers={
                ProblemError: _problem,
                PkmError: _unavailable,
                ClientDisconnect: _gone,
                HTTPException: _not_routed,
                Exception: _broken,
            },
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        settings = self._settings
        announcer = Announcer(put_on_stream(aws.kinesis_client(settings, attempts=KINESIS_ATTEMPTS), settings))
        files = FileUploads(settings, at_once=settings.serve_uploads)
        stored = Stored(aws.object_store(settings), settings)
        states = StateReader(settings)
        threads = ThreadPoolExecutor(STATES_AT_ONCE, thread_name_prefix="states")
        handlers = Endpoints(
            settings=settings,
            intake=Intake(settings, stored=stored, announcer=announcer),
            objects=Uploads(settings),
            files=files,
            stored=stored,
            states=states,
            threads=threads,
        )
        self._handlers.append(handlers)
        sweeping = asyncio.create_task(sweep_now_and_then(files), name="sweep")
        try:
            yield
        finally:
            # Requests are over by now, or were cancelled.
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping
            await announcer.close()
            await files.close(seconds=UNDO_SECONDS)
            with suppress(PkmError, TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await asyncio.get_running_loop().run_in_executor(threads, states.close)
            threads.shutdown(wait=False, cancel_futures=True)
            self._readiness.close()

    def _guarded(self, handler: Callable[[Endpoints], Handler], *, places: int) -> Answering:
        """Let a request through to its handler once its caller is known, within its rate, and has a place."""
        gate = Gate(places, waiting=WAITING_FOR_A_PLACE, seconds=WAITING_SECONDS)

        async def answer(request: Request) -> Response:
            if self._tokens is None:
                _check_local(request)
                owner = ANYBODY
            else:
                owner = self._tokens.name_of(request.headers.get("authorization"))
            request.state.owner = owner
            self._rates.take(owner)
            async with gate.place():
                return await handler(self._handlers[0])(request, owner)

        return answer

    async def _ready(self, _request: Request) -> Response:
        health = await self._readiness.health()
        return json_answer(health, status=200 if health.status == "ready" else 503)


def _check_local(request: Request) -> None:
    # A browser on this machine lets the pages of others post here, under our address or under a name of theirs.
    host = host_of(request.headers.get("host", ""))
    if "origin" in request.headers or not (host == "localhost" or is_loopback(host)):
        raise ProblemError(problems.FORBIDDEN, "this service is for programs on its own machine")


async def _live(_request: Request) -> Response:
    return Response(status_code=204)


def _fixed(body: bytes, media_type: str) -> Answering:
    async def answer(_request: Request) -> Response:
        return Response(body, media_type=media_type)

    return answer


def _page(html: str) -> Answering:
    async def answer(_request: Request) -> Response:
        return HTMLResponse(html, headers={"Content-Security-Policy": page.CONTENT_SECURITY_POLICY})

    return answer


def _named(route: str, endpoint: Answering) -> Answering:
    async def answer(request: Request) -> Response:
        request.state.route = route
        return await endpoint(request)

    return answer


async def _problem(request: Request, error: Exception) -> Response:
    problem = error if isinstance(error, ProblemError) else ProblemError(problems.INTERNAL, "")
    return problems.answer(problem, request_id=request.state.request_id)


async def _unavailable(request: Request, error: Exception) -> Response:
    _log.warning("unavailable", request_id=request.state.request_id, error=str(error))
    problem = ProblemError(
        problems.UNAVAILABLE, "S3, the stream or the catalog is busy or down", retry_after_seconds=RETRY_SECONDS
    )
    return await _problem(request, problem)


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=GONE_STATUS)


async def _not_routed(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException) and error.status_code == 405:
        headers = error.headers or {}
        problem = ProblemError(problems.METHOD_NOT_ALLOWED, "this address has other methods", headers=headers)
    else:
        problem = ProblemError(problems.NOT_FOUND, "there is no such address")
    return await _problem(request, problem)


async def _broken(request: Request, error: Exception) -> Response:
    # Without the error's message, which may quote what came with the request.
    trace = "".join(traceback.format_tb(error.__traceback__))
    _log.error("failed", request_id=request.state.request_id, error=type(error).__name__, exception=trace)
    return await _problem(request, ProblemError(problems.INTERNAL, "this is a fault of the service"))
