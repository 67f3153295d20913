"""Who may use the service: bearer tokens with names, of which only digests are kept."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Self

from pydantic import SecretStr

from core.errors import SettingsError
from producers.service.problems import UNAUTHORIZED, ProblemError

__all__ = ["LEAST_CHARACTERS", "Tokens"]

LEAST_CHARACTERS = 24
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
# What RFC 6750 allows in a header.
_TOKEN = re.compile(rf"[A-Za-z0-9._~+/=-]{{{LEAST_CHARACTERS},512}}")
_SCHEME = "bearer"


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens' SHA-256 digests, each with the name of whom it belongs to."""

    digests: tuple[tuple[bytes, str], ...]

    @classmethod
    def read(cls, setting: SecretStr) -> Self:
        """Read `NAME:TOKEN,NAME:TOKEN`; a name has two tokens while one takes the other's place.

        Raises SettingsError, which never quotes a token.
        """
        digests = []
        for number, entry in enumerate(setting.get_secret_value().split(","), start=1):
            name, colon, token = entry.strip().partition(":")
            if not colon or not _NAME.fullmatch(name):
                raise SettingsError(
                    f"PKM_SERVE_TOKENS, entry {number}: begin it with a name of lower-case letters, digits, "
                    '"-" or "_" (at most 32) and a colon, as in agents:TOKEN'
                )
            if not _TOKEN.fullmatch(token):
                raise SettingsError(
                    f"PKM_SERVE_TOKENS, the token of {name} (entry {number}) has fewer than {LEAST_CHARACTERS} "
                    "characters, or others than letters, digits and ._~+/=-: make one with `openssl rand -hex 32`"
                )
            digests.append((_digest(token.encode()), name))
        if len({digest for digest, _ in digests}) < len(digests):
            raise SettingsError("PKM_SERVE_TOKENS has the same token twice: give each name tokens of its own")
        return cls(tuple(digests))

    @property
    def names(self) -> frozenset[str]:
        """Everybody who has a token."""
        return frozenset(name for _, name in self.digests)

    def name_of(self, authorization: str | None) -> str:
        """Return whose token an `Authorization` header carries; raises ProblemError (401) for none and for any other.

        Takes the same time for every token: digests are compared, whole, and all of them.
        """
        scheme, _, token = (authorization or "").partition(" ")
        # The wire's bytes, as the server decoded them.
        presented = _digest(token.strip().encode("latin-1", "replace"))
        found: str | None = None
        for digest, name in self.digests:
            if hmac.compare_digest(digest, presented):
                found = name
        if scheme.lower() != _SCHEME or found is None:
            raise ProblemError(UNAUTHORIZED, "give a known token: Authorization: Bearer TOKEN")
        return found


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
