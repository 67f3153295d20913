"""Puts visible text together: inline text with single spaces, lines, paragraphs, table cells, preformatted blocks."""

from __future__ import annotations

__all__ = ["TextWriter"]

LINE = 1
PARAGRAPH = 2


class TextWriter:
    """Gathers text in reading order; breaks asked for before any text, twice, or at the end leave no trace."""

    __slots__ = ("_break", "_joint", "_pieces")

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._break = 0
        self._joint = ""

    def inline(self, text: str) -> None:
        """Add running text; white space in it, and at its ends, counts as one space."""
        words = text.split()
        if not words:
            if text and not self._joint:
                self._joint = " "
            return
        if text[0].isspace() and not self._joint:
            self._joint = " "
        self._add(" ".join(words))
        self._joint = " " if text[-1].isspace() else ""

    def preformatted(self, text: str) -> None:
        """Add text whose spaces and line ends count."""
        if text:
            self._add(text)
            self._joint = ""

    def line(self) -> None:
        """Start a new line before what comes next."""
        self._break = max(self._break, LINE)

    def paragraph(self) -> None:
        """Leave a blank line before what comes next."""
        self._break = PARAGRAPH

    def cell(self) -> None:
        """Put a tab before what comes next, unless that starts a line."""
        self._joint = "\t"

    def mark(self) -> int:
        """Return a place, for `since`."""
        return len(self._pieces)

    def since(self, mark: int) -> str:
        """Return what was written after `mark`."""
        return "".join(self._pieces[mark:]).strip()

    def text(self) -> str:
        """Return everything written."""
        return "".join(self._pieces).strip("\n")

    def _add(self, text: str) -> None:
        if self._pieces:
            self._pieces.append("\n" * self._break if self._break else self._joint)
        self._pieces.append(text)
        self._break = 0
