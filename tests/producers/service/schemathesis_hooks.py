"""Loaded by schemathesis (SCHEMATHESIS_HOOKS): what no schema can say."""

from __future__ import annotations

import itertools
from typing import Any

import schemathesis

_NUMBERS = itertools.count()


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """A key belongs to one request: no two of those that are allowed have the same."""
    key = (case.headers or {}).get("Idempotency-Key")
    if isinstance(key, str) and key and key.isascii() and key.isprintable() and " " not in key and len(key) < 240:
        case.headers["Idempotency-Key"] = f"{key}-{next(_NUMBERS)}"
