"""Ignore rules as git has them, from `.gitignore` and `.pkmignore` in the folders themselves."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from pathspec import GitIgnoreSpec
from pathspec.patterns.gitignore import GitIgnorePatternError

__all__ = ["IgnoreRules"]

NAMES = (".gitignore", ".pkmignore")
"""Read in this order, and the last rule that fits decides: `.pkmignore` has the last word in its folder."""

MAX_BYTES = 1024 * 1024

_Chain = tuple[tuple[str, GitIgnoreSpec], ...]


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
        for folder, spec in self._chain(os.path.dirname(path)):  # noqa: PTH120 - text is ten times faster
            relative = path[len(folder) :].lstrip(os.sep) + ("/" if is_folder else "")
            decided = spec.check_file(relative).include
            if decided is not None:
                return decided
        return False

    def ignores_any(self, path: str) -> bool:
        """Tell whether `path`, a file, or any folder between it and the root is left out."""
        at = self._root
        parts = Path(path).relative_to(self._root).parts
        for number, part in enumerate(parts, start=1):
            at = os.path.join(at, part)  # noqa: PTH118
            if self.ignores(at, is_folder=number < len(parts)):
                return True
        return False

    def _chain(self, folder: str) -> _Chain:
        """Folders with rules, from `folder` up to the root."""
        chain = self._chains.get(folder)
        if chain is None:
            above = () if folder == self._root else self._chain(os.path.dirname(folder))  # noqa: PTH120
            spec = self._read(folder)
            chain = self._chains[folder] = above if spec is None else ((folder, spec), *above)
        return chain

    def _read(self, folder: str) -> GitIgnoreSpec | None:
        lines = [line for name in NAMES for line in self._lines(os.path.join(folder, name))]  # noqa: PTH118
        if not lines:
            return None
        try:
            return GitIgnoreSpec.from_lines(lines)
        except GitIgnorePatternError:
            return GitIgnoreSpec.from_lines([line for line in lines if self._is_usable(folder, line)])

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

    def _is_usable(self, folder: str, line: str) -> bool:
        try:
            GitIgnoreSpec.from_lines([line])
        except GitIgnorePatternError:
            self._report(folder, f'the rule "{line}" is no pattern')
            return False
        return True
