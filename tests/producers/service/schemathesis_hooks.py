"""Loaded by schemathesis (SCHEMATHESIS_HOOKS): what no schema can say."""

from __future__ import annotations

import re
import uuid
from typing import Any

import schemathesis

_ALLOWED = re.compile(r"[!-~]{1,220}")


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """A key belongs to one request: no two of those that are allowed have the same."""
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and _ALLOWED.fullmatch(key):
        case.headers["Idempotency-Key"] = f"{key}-{uuid.uuid4().hex[:32]}"


@schemathesis.hook
def filter_body(context: Any, body: Any) -> bool:
    """In a form everything is text: a number sent as an identity is one."""
    if context.operation.path != "/v1/files" or not isinstance(body, dict):
        return True
    return all(isinstance(body.get(name, ""), str) for name in ("identity", "session"))
