"""What clients send and are given, as models: they check the requests, and the OpenAPI document is made from them.

Every limit is in the schema, so that what fits the schema is taken: metadata at its longest, each character escaped,
is below the 256 KiB that producers take.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "MAX_FILENAME_CHARACTERS",
    "MAX_NOTE_BYTES",
    "MAX_TEXT_CHARACTERS",
    "Accepted",
    "Failed",
    "Fields",
    "Health",
    "NoteIn",
    "NoteState",
    "ProblemOut",
    "State",
]

MAX_TEXT_CHARACTERS = 256 * 1024
MAX_FILENAME_CHARACTERS = 255
MAX_NOTE_BYTES = 4 * 1024 * 1024
"""Of a request's JSON: the longest text, each character escaped at its longest, fits."""

State = Literal["accepted", "processed", "failed"]

# A record with NUL in its metadata is refused by the flow; other controls have no place in a name.
_NO_NUL = r"^[^\u0000]*$"
_NO_CONTROLS = r"^[^\u0000-\u001f\u007f]+$"

_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
_Value = Annotated[str, Field(max_length=2000, pattern=_NO_NUL)]
_Identity = Annotated[
    str,
    Field(
        min_length=1,
        max_length=256,
        pattern=_NO_CONTROLS,
        description="Your own name of the note: sent again with other content, it is a new version of the same note."
        " Without it the content itself is the name.",
    ),
]
_Session = Annotated[
    str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$", description="The agent's session, kept as metadata.")
]
_Metadata = Annotated[
    dict[_Name, _Value],
    Field(
        max_length=20,
        json_schema_extra={"additionalProperties": False},
        description="Kept with the note. The names agent, identity, path, session and title are the service's:"
        " what it has to say there wins.",
    ),
]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class Fields(_Strict):
    """What comes with a file, each as a field of the form; `metadata` is JSON."""

    identity: _Identity | None = None
    session: _Session | None = None
    metadata: _Metadata = Field(default_factory=dict)


class NoteIn(_Strict):
    """A note of an agent."""

    text: Annotated[
        str,
        Field(min_length=1, max_length=MAX_TEXT_CHARACTERS, description="Markdown, or what `content_type` says."),
    ]
    title: Annotated[str, Field(min_length=1, max_length=200, pattern=_NO_CONTROLS)] | None = None
    session: _Session | None = None
    identity: _Identity | None = None
    content_type: Literal["text/markdown", "text/plain", "text/html"] = "text/markdown"
    metadata: _Metadata = Field(default_factory=dict)


class Accepted(_Strict):
    """S3 has the content and the stream its event: nothing can be lost any more."""

    note_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="The note through all its versions.")]
    event_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$", description="This version of it.")]
    state: Literal["accepted"] = "accepted"


class Failed(_Strict):
    """Why a note could not be processed."""

    step: str
    error: str
    message: str


class NoteState(_Strict):
    """How far a note's newest version is."""

    note_id: str
    event_id: Annotated[str, Field(description="The version that the state is of.")]
    state: State
    accepted_at: Annotated[datetime | None, Field(description="None for a note that came another way.")] = None
    processed_at: datetime | None = None
    title: str | None = None
    failure: Failed | None = None


class Health(_Strict):
    """Whether the service can take notes in."""

    status: Literal["ready", "failing", "stopping"]
    checks: dict[str, Literal["ok", "failing"]]


class FieldError(_Strict):
    """What is wrong with one part of the content."""

    pointer: Annotated[str, Field(description="A JSON pointer.")]
    detail: str


class ProblemOut(_Strict):
    """Problem details as RFC 9457 has them."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str
    errors: list[FieldError] = Field(default_factory=list)
