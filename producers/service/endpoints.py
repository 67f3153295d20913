"""What each address of the service does, once the caller is known and has a place."""

from __future__ import annotations

import asyncio
import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from core.settings import Settings
from producers.content_types import detect_content_type
from producers.items import SourceItem, StoredObject
from producers.metadata import Metadata
from producers.service import bodies
from producers.service.checking import checked
from producers.service.contract import MAX_NOTE_BYTES, Accepted, NoteIn
from producers.service.file_uploads import FileUploads
from producers.service.forms import FORM_BYTES, boundary_of, read_form
from producers.service.intake import Intake, Taken, described, identity_of
from producers.service.problems import (
    INVALID_REQUEST,
    NOT_FOUND,
    TOO_LARGE,
    UNAVAILABLE,
    UNSUPPORTED_MEDIA_TYPE,
    ProblemError,
)
from producers.service.states import StateReader
from producers.service.stored import Stored
from producers.uploads import Uploads

__all__ = ["AGENT", "UPLOAD", "Endpoints", "json_answer"]

AGENT, UPLOAD = "agent", "upload"
STATE_SECONDS = 10.0
_JSON = "application/json"
_KEY = re.compile(r"[\x21-\x7e]{1,255}")
# What a record of the stream may be called; none of ours is called otherwise.
_NOTE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoints:
    """The handlers, with all that they need."""

    settings: Settings
    intake: Intake
    objects: Uploads
    files: FileUploads
    stored: Stored
    states: StateReader
    threads: ThreadPoolExecutor

    async def post_note(self, request: Request, owner: str) -> Response:
        """Take a note in that comes as JSON."""
        key = _idempotency_key(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
            raise ProblemError(UNSUPPORTED_MEDIA_TYPE, f"send {_JSON}", headers={"Accept-Post": _JSON})
        note = checked(NoteIn, await bodies.whole(request, max_bytes=MAX_NOTE_BYTES))
        content = note.text.encode()
        most = self.settings.max_object_bytes
        if len(content) > most:
            raise ProblemError(TOO_LARGE, f"the text has more than {most:,} bytes (PKM_MAX_OBJECT_BYTES)")
        digest = hashlib.sha256(content).digest()
        document = described(
            AGENT,
            identity_of(owner, note.identity, digest),
            content_sha256=digest,
            content_size=len(content),
            content_type=note.content_type,
            metadata=_metadata(
                note.metadata, agent=owner, session=note.session, identity=note.identity, title=note.title
            ),
        )

        async def put() -> Metadata:
            return (await self.objects.put(_item(document, content))).metadata

        return _accepted(await self.intake.take(document, put, owner=owner, key=key))

    async def post_file(self, request: Request, owner: str) -> Response:
        """Take a file in that comes as a form; it is on its way to S3 while it comes."""
        key = _idempotency_key(request)
        boundary = boundary_of(request.headers.get("content-type"))
        most = self.settings.max_object_bytes
        pieces = bodies.pieces(request, max_bytes=most + FORM_BYTES)
        known = await self.intake.known(owner, key)
        # What a key has completed is only compared: it is read, and goes nowhere.
        upload = self.files.start(keep=known is None or not known.done)
        try:
            form = await read_form(pieces, boundary, upload.write, max_file_bytes=most)
            fields, name = form.fields, form.filename or ""
            document = described(
                UPLOAD,
                identity_of(owner, fields.identity, upload.sha256),
                content_sha256=upload.sha256,
                content_size=upload.size_bytes,
                content_type=form.content_type or detect_content_type(upload.sample, name=name),
                metadata=_metadata(
                    fields.metadata, agent=owner, session=fields.session, identity=fields.identity, path=name or None
                ),
            )

            async def put() -> Metadata:
                content = upload.whole
                if content is not None:
                    return (await self.objects.put(_item(document, content))).metadata
                metadata = (await self.objects.put(document)).metadata
                attributes = {"Content-Type": str(document.content_type), **metadata.attributes}
                await upload.place(document.s3_key, attributes=attributes)
                return metadata

            return _accepted(await self.intake.take(document, put, owner=owner, key=key))
        finally:
            upload.discard()

    async def get_note(self, request: Request, owner: str) -> Response:  # noqa: ARG002 - everybody may ask
        """Tell how far a note is."""
        note_id: str = request.path_params["note_id"]
        if not _NOTE_ID.fullmatch(note_id):
            raise _unknown()
        receipt = await self.stored.receipt(note_id)
        try:
            async with asyncio.timeout(STATE_SECONDS):
                state = await asyncio.get_running_loop().run_in_executor(
                    self.threads, self.states.read, note_id, receipt
                )
        except TimeoutError:
            raise ProblemError(UNAVAILABLE, "the state could not be read in time", retry_after_seconds=5) from None
        if state is None:
            raise _unknown()
        return json_answer(state)


def json_answer(model: BaseModel, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Return a model as JSON, without what it has nothing to say of."""
    body = model.model_dump_json(exclude_none=True)
    return Response(body, status_code=status, headers=headers, media_type=_JSON)


def _accepted(taken: Taken) -> Response:
    headers = {"Location": f"/v1/notes/{taken.note_id}"}
    if taken.again:
        headers["Idempotent-Replayed"] = "true"
    return json_answer(Accepted(note_id=taken.note_id, event_id=taken.event_id), status=202, headers=headers)


def _idempotency_key(request: Request) -> str | None:
    keys = request.headers.getlist("idempotency-key")
    if not keys:
        return None
    if len(keys) > 1 or not _KEY.fullmatch(keys[0]):
        raise ProblemError(INVALID_REQUEST, "an Idempotency-Key has 1 to 255 printable ASCII characters, no blanks")
    return keys[0]


def _item(document: StoredObject, content: bytes) -> SourceItem:
    return SourceItem(document.source_type, document.identity, content, document.content_type, document.metadata)


def _metadata(given: dict[str, str], **own: str | None) -> dict[str, str]:
    return {**given, **{name: value for name, value in own.items() if value is not None}}


def _unknown() -> ProblemError:
    return ProblemError(NOT_FOUND, "there is no such note")
