"""Checks JSON against the models of the contract, and says what is wrong without quoting it."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError

from producers.service.problems import INVALID_CONTENT, INVALID_REQUEST, ProblemError

__all__ = ["checked", "problem_of"]

MAX_ERRORS = 10
_Model = TypeVar("_Model", bound=BaseModel)


def checked(model: type[_Model], body: bytes) -> _Model:
    """Read JSON as `model`; raises ProblemError: 400 for what is not JSON, 422 for what does not fit."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise problem_of(error) from error


def problem_of(error: ValidationError) -> ProblemError:
    """Return what is wrong, as a problem that a client can act on."""
    details = error.errors(include_input=False, include_url=False, include_context=False)
    if details[0]["type"] == "json_invalid":
        return ProblemError(INVALID_REQUEST, "the body is not JSON in UTF-8")
    errors = [{"pointer": _pointer(detail["loc"]), "detail": detail["msg"]} for detail in details[:MAX_ERRORS]]
    return ProblemError(INVALID_CONTENT, f"{len(details)} parts of the content do not fit the schema", errors=errors)


def _pointer(place: tuple[int | str, ...]) -> str:
    # RFC 6901. A name that the client made up may be long.
    return "".join(f"/{str(part)[:64].replace('~', '~0').replace('/', '~1')}" for part in place)
