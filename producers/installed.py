"""READMEs of the installed distributions as source items: real documents that every machine has."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution, distributions

from producers.announce import SourceItem

__all__ = ["installed_readmes"]

SOURCE_TYPE = "installed"
LEAST_CHARACTERS = 200
# The core metadata specification: without Description-Content-Type a description is reStructuredText.
DEFAULT_TYPE = "text/x-rst"
KNOWN_TYPES = frozenset({"text/markdown", "text/x-rst", "text/plain"})


def installed_readmes(
    limit: int | None = None, *, found: Iterable[Distribution] | None = None
) -> Iterator[SourceItem]:
    """Give the README of each installed distribution, by name, at most `limit`; the identity is the name.

    The content is UTF-8, its type what the distribution declares. READMEs below 200 characters are left out, and of
    a distribution that is installed twice the one that Python would import.
    """
    by_name: dict[str, Distribution] = {}
    for distribution in distributions() if found is None else found:
        # What is left of a broken installation has no name.
        if name := distribution.metadata["Name"]:
            by_name.setdefault(re.sub(r"[-_.]+", "-", name).lower(), distribution)
    given = 0
    for name, distribution in sorted(by_name.items()):
        if given == limit:
            return
        text = _readme(distribution)
        if len(text) < LEAST_CHARACTERS:
            continue
        given += 1
        yield SourceItem(
            source_type=SOURCE_TYPE,
            identity=name,
            content=text.encode(errors="replace"),
            content_type=_content_type(distribution),
            metadata={"distribution": name, "version": distribution.version},
        )


def _readme(distribution: Distribution) -> str:
    # The description is the message's body, or a header in old metadata.
    text = distribution.metadata.get_payload() or distribution.metadata["Description"] or ""  # type: ignore[attr-defined]
    return str(text).strip()


def _content_type(distribution: Distribution) -> str:
    declared = (distribution.metadata["Description-Content-Type"] or DEFAULT_TYPE).partition(";")[0].strip().lower()
    return declared if declared in KNOWN_TYPES else "text/plain"
