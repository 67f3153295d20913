"""The OpenAPI document, made from the models that check the requests and the problems that answer them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from pydantic.json_schema import models_json_schema

from producers.service import problems
from producers.service.contract import Accepted, Fields, Health, NoteIn, NoteState, ProblemOut

__all__ = ["document"]

Json = dict[str, Any]

_DESCRIPTION = """\
Takes in notes of agents and uploaded files. An answer of 202 means that S3 has the content and the stream its event:
nothing can be lost any more. Everything may be repeated; the same content of the same note is processed once."""

_KEY_DESCRIPTION = """\
Makes a repeated request safe: with the same key and content it is answered as the first time, also after a crash of
the service and by another replica. The same key with other content is refused."""

_REQUEST_ID: Json = {"description": "Names the request in the service's log.", "schema": {"type": "string"}}
_RETRY_AFTER: Json = {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}


def document(*, with_tokens: bool = True) -> Json:
    """Return the document; without tokens no operation asks for one."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in (NoteIn, Fields, Accepted, NoteState, Health, ProblemOut)],
        ref_template="#/components/schemas/{model}",
    )
    schemas: Json = definitions["$defs"]
    schemas["FileIn"] = _file_schema(schemas.pop("Fields"))
    components: Json = {"schemas": schemas}
    if with_tokens:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "pkm ingest", "version": version("pkm-lakehouse"), "description": _DESCRIPTION},
        "paths": _paths(with_tokens=with_tokens),
        "components": components,
    }


def _paths(*, with_tokens: bool) -> Json:
    common = [problems.TOO_MANY_REQUESTS, problems.INTERNAL, problems.UNAVAILABLE]
    taking_in = [
        problems.INVALID_REQUEST,
        problems.TOO_SLOW,
        problems.TOO_LARGE,
        problems.UNSUPPORTED_MEDIA_TYPE,
        problems.INVALID_CONTENT,
        problems.KEY_REUSED,
    ]
    common.append(problems.UNAUTHORIZED if with_tokens else problems.FORBIDDEN)
    security: Json = {"security": [{"token": []}]} if with_tokens else {}
    return {
        "/v1/notes": {
            "post": {
                "operationId": "postNote",
                "summary": "Take in a note of an agent",
                "description": "The text becomes a note of source type `agent`; with an `identity` that was sent"
                " before, a new version of that note.",
                "parameters": [_idempotency_key()],
                "requestBody": _body("application/json", "NoteIn"),
                "responses": {"202": _accepted(), **_problems([*common, *taking_in])},
                **security,
            }
        },
        "/v1/files": {
            "post": {
                "operationId": "postFile",
                "summary": "Take in a file",
                "description": "The file becomes a note of source type `upload`. It is streamed to S3 while it comes;"
                " its size is limited by `PKM_MAX_OBJECT_BYTES`. Parts may come in any order.",
                "parameters": [_idempotency_key()],
                "requestBody": _body(
                    "multipart/form-data",
                    "FileIn",
                    encoding={"metadata": {"contentType": "application/json"}},
                ),
                "responses": {"202": _accepted(), **_problems([*common, *taking_in])},
                **security,
            }
        },
        "/v1/notes/{note_id}": {
            "get": {
                "operationId": "getNote",
                "summary": "Tell how far a note is",
                "description": "accepted: it waits for the flow. processed: its newest version is in the tables."
                " failed: `failure` says why; a person can redrive it, or send a better version.",
                "parameters": [
                    {
                        "name": "note_id",
                        "in": "path",
                        "required": True,
                        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
                    }
                ],
                "responses": {
                    "200": _json("How far it is.", "NoteState"),
                    **_problems([*common, problems.NOT_FOUND]),
                },
                **security,
            }
        },
        "/healthz": {
            "get": {
                "operationId": "getReadiness",
                "summary": "Tell whether notes can be taken in",
                "description": "Looks at S3 and the stream, every 5 seconds at most.",
                "responses": {
                    "200": _json("Ready.", "Health"),
                    "503": _json("S3 or the stream do not answer, or the service is stopping.", "Health"),
                },
            }
        },
        "/healthz/live": {
            "get": {
                "operationId": "getLiveness",
                "summary": "Tell that the process answers",
                "responses": {"204": {"description": "It does.", "headers": {"X-Request-Id": _REQUEST_ID}}},
            }
        },
    }


def _file_schema(fields: Json) -> Json:
    file = {"type": "string", "format": "binary", "description": "The content; the part's file name is kept."}
    return {
        **fields,
        "title": "FileIn",
        "description": "A file, and what is said of it.",
        "properties": {"file": file, **{name: _never_null(field) for name, field in fields["properties"].items()}},
        "required": ["file"],
    }


def _never_null(field: Json) -> Json:
    # What a form does not say it leaves out; "null" would be text.
    choices = [choice for choice in field.get("anyOf", []) if choice != {"type": "null"}]
    return choices[0] if choices else field


def _idempotency_key() -> Json:
    return {
        "name": "Idempotency-Key",
        "in": "header",
        "required": False,
        "description": _KEY_DESCRIPTION,
        "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
    }


def _body(media_type: str, schema: str, **more: Json) -> Json:
    return {"required": True, "content": {media_type: {"schema": _reference(schema), **more}}}


def _accepted() -> Json:
    accepted = _json("S3 and the stream have it.", "Accepted")
    accepted["headers"] |= {
        "Location": {"description": "Where its state is told.", "schema": {"type": "string"}},
        "Idempotent-Replayed": {
            "description": "An earlier request with this key was answered so.",
            "schema": {"type": "string", "enum": ["true"]},
        },
    }
    accepted["links"] = {
        "state": {
            "operationId": "getNote",
            "parameters": {"note_id": "$response.body#/note_id"},
        }
    }
    return accepted


def _json(description: str, schema: str) -> Json:
    return {
        "description": description,
        "headers": {"X-Request-Id": _REQUEST_ID},
        "content": {"application/json": {"schema": _reference(schema)}},
    }


def _problems(kinds: list[problems.Kind]) -> Mapping[str, Json]:
    answers: dict[str, Json] = {}
    for kind in sorted(kinds, key=lambda kind: kind.status):
        status = str(kind.status)
        if status in answers:
            answers[status]["description"] += f" Or {kind.title.lower()}: {kind.meaning}"
            continue
        headers: Json = {"X-Request-Id": _REQUEST_ID}
        if kind in {problems.TOO_MANY_REQUESTS, problems.UNAVAILABLE}:
            headers["Retry-After"] = _RETRY_AFTER
        if kind is problems.UNAUTHORIZED:
            headers["WWW-Authenticate"] = {"schema": {"type": "string"}}
        answers[status] = {
            "description": f"{kind.title}: {kind.meaning}",
            "headers": headers,
            "content": {problems.CONTENT_TYPE: {"schema": _reference("ProblemOut")}},
        }
    return answers


def _reference(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}
