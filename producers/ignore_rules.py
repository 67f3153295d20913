"""Ignore rules as git has them, from `.gitignore` and `.pkmignore` in the folders themselves."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

from pathspec.patterns.gitignore import GitIgnorePatternError
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

__all__ = ["IgnoreRules"]

NAMES = (".gitignore", ".pkmignore")
"""Read in this order, and the last rule that fits decides: `.pkmignore` has the last word in its folder."""

MAX_BYTES = 1024 * 1024

_Rules = tuple[tuple[re.Pattern[str], bool], ...]
_Chain = tuple[tuple[str, _Rules], ...]
_ENDS = ("(?P<ps_d>/)", "(?:(?P<ps_d>/)|$)")


class IgnoreRules:
    """The rules of all folders below `root`; those of a deeper folder go before those above it.

    Rules above `root` don't count. What can't be used is told to `report(path, reason)`. Paths are absolute and real.
    """

    def __init__(self, root: str, *, report: Callable[[str, str], None]) -> None:
        self._root = root
        self._report = report
        self._chains: dict[str, _Chain] = {}

    def ignores(self, path: str, *, is_folder: bool) -> bool:
        """Tell whether a rule leaves `path` out; of a folder that is left out nothing below is to be asked for."""
        for folder, rules in self._chain(os.path.dirname(path)):  # noqa: PTH120 - text is ten times faster
            relative = path[len(folder) :].lstrip(os.sep) + ("/" if is_folder else "")
            for rule, leaves_out in rules:
                if rule.search(relative):
                    return leaves_out
        return False

    def ignores_any(self, path: str, *, is_folder: bool) -> bool:
        """Tell whether `path`, or any folder between it and the root, is left out."""
        at = self._root
        parts = Path(path).relative_to(self._root).parts
        for number, part in enumerate(parts, start=1):
            at = os.path.join(at, part)  # noqa: PTH118
            if self.ignores(at, is_folder=is_folder or number < len(parts)):
                return True
        return False

    def _chain(self, folder: str) -> _Chain:
        """Folders with rules, from `folder` up to the root."""
        chain = self._chains.get(folder)
        if chain is None:
            above = () if folder == self._root else self._chain(os.path.dirname(folder))  # noqa: PTH120
            rules = self._read(folder)
            chain = self._chains[folder] = ((folder, rules), *above) if rules else above
        return chain

    def _read(self, folder: str) -> _Rules:
        """Read the rules of a folder, the last one first, since that decides."""
        rules = []
        for name in NAMES:
            path = os.path.join(folder, name)  # noqa: PTH118
            for line in self._lines(path):
                try:
                    # pathspec takes x/**/ for x/; git for the folders below x.
                    spelt_out = f"{line}*/" if line.endswith("/**/") else line
                    expression, leaves_out = GitIgnoreSpecPattern.pattern_to_regex(spelt_out)
                except GitIgnorePatternError:
                    self._report(path, f'the rule "{line}" is no pattern')
                    continue
                if expression is not None and leaves_out is not None:
                    rules.append((re.compile(_of_itself(str(expression)), re.DOTALL), leaves_out))
        return tuple(reversed(rules))

    def _lines(self, path: str) -> list[str]:
        try:
            # A link may lead out of the folder, and a pipe would be waited for.
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return []
        except OSError as error:
            self._report(path, f"can't be read: {error.strerror}")
            return []
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return []
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            self._report(path, f"is larger than {MAX_BYTES:,} bytes, so none of its rules counts")
            return []
        return os.fsdecode(content.removeprefix(b"\xef\xbb\xbf")).splitlines()


def _of_itself(expression: str) -> str:
    """Narrow an expression of pathspec, which fits what lies below a folder too, to what a rule names itself.

    For git a rule that lets a folder in again says nothing about what is in it: that is for the rules above to say.
    """
    if expression.endswith(_ENDS):
        return rf"{expression}\Z"
    # Such as x/**: what is in it, not the folder.
    return f"{expression}." if expression.endswith("/") else expression
