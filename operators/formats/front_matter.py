"""YAML front matter at the head of a Markdown document, read so that no document can blow it up."""

from __future__ import annotations

import math
import re
from typing import Any, Final

import orjson
import yaml
from yaml.nodes import Node

from operators.formats.extracted import Refusal, clean

__all__ = ["MAX_CHARACTERS", "read", "split", "to_json"]

MAX_CHARACTERS: Final = 64 * 1024
MAX_DEPTH: Final = 32
_SIXTY_FOUR_BITS: Final = 2**63

# A blank line after the dashes means a thematic break, not front matter.
_OPENING = re.compile(r"---[ \t]*\n(?=[^\n]*\S)")
_CLOSING = re.compile(r"^(?:---|\.\.\.)[ \t]*$", re.MULTILINE)


class _Loader(yaml.SafeLoader):
    """SafeLoader with a depth limit and without aliases: 283 bytes of them became 205 megabytes."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise Refusal("UnsafeYaml", "front matter has a YAML alias (*name): write the value out")
        if self.depth >= MAX_DEPTH:
            raise Refusal("TooDeep", f"front matter is nested deeper than {MAX_DEPTH} levels")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1


# Dates stay the text that the author wrote: half of them are not real dates, and JSON has none.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def split(text: str) -> tuple[str | None, str]:
    r"""Cut `text` (\n line ends) into its front matter, None when it has none, and the rest.

    Raises Refusal when the front matter is larger than 64 kB.
    """
    opening = _OPENING.match(text)
    if opening is None:
        return None, text
    closing = _CLOSING.search(text, opening.end())
    if closing is None:
        return None, text
    if closing.start() - opening.end() > MAX_CHARACTERS:
        raise Refusal("TooLarge", f"front matter is larger than {MAX_CHARACTERS // 1024} kB")
    return text[opening.end() : closing.start()], text[closing.end() :].lstrip("\n")


def read(source: str) -> dict[str, Any]:
    """Return front matter as what JSON can hold: keys are text, odd values are the text that Python prints.

    Raises Refusal when it is not a YAML mapping, has aliases or is nested too deep.
    """
    try:
        # S506 asks for a safe loader; ours is one.
        value = yaml.load(source, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise Refusal("NotYaml", f"front matter is not YAML: {_problem(error)}") from None
    except (ValueError, TypeError, OverflowError, RecursionError, LookupError, AttributeError) as error:
        # PyYAML lets the errors of int(), base64 and datetime through for scalars with a wrong explicit tag.
        raise Refusal("NotYaml", f"front matter has a value that YAML can't build ({type(error).__name__})") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refusal("NotYaml", "front matter is not a mapping of names to values")
    mapping: dict[str, Any] = _as_json(value)
    return mapping


def to_json(mapping: dict[str, Any]) -> str:
    """Write what `read` gave."""
    return orjson.dumps(mapping).decode()


def _as_json(value: Any) -> Any:
    # Depth is at most MAX_DEPTH here, so recursion is safe.
    if isinstance(value, dict):
        return {_key(key): _as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_as_json(item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if -_SIXTY_FOUR_BITS <= value < _SIXTY_FOUR_BITS else hex(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return clean(str(value))


def _key(key: Any) -> str:
    if isinstance(key, str):
        return clean(key)
    # As YAML writes it: true, null, 7.
    value = _as_json(key)
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _problem(error: yaml.YAMLError) -> str:
    # Never the error's own text: it quotes the document.
    mark = getattr(error, "problem_mark", None)
    line = f" (line {mark.line + 2})" if mark is not None else ""
    return f"{type(error).__name__.removesuffix('Error').lower()} error{line}"
