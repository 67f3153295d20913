"""What a person sees: tables, progress and one-line errors; or JSON, when a script asks for it.

Results go to standard output, progress and errors to standard error. Nothing that came with a document commands the
terminal: control characters are spelt out.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import orjson
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from core import telemetry
from core.visible import visible, visible_json

if TYPE_CHECKING:
    from pkm.dead_letters import Redriven
    from sinks.lance import SearchHit

__all__ = [
    "LeftAlone",
    "complain",
    "flow_progress",
    "leave_progress",
    "progress",
    "quiet",
    "show_environment",
    "show_fields",
    "show_hits",
    "show_note",
    "show_redriven",
    "show_rows",
    "show_snapshots",
    "show_summary",
    "step",
]

output = Console(highlight=False)
messages = Console(stderr=True, highlight=False)

REFRESH_SECONDS = 0.5
LONGEST_CELL = 200
# A column of short values (ids, times, numbers, names) is never folded; one of text has at least this width, or the
# rows are shown one below the other.
SHORT_CELL = 32
LEAST_TEXT = 16
GAP = 2
NARROW = 80

_TRAILING = re.compile(r"(?: |\x1b\[[0-9;]*m)+$", re.MULTILINE)


def complain(message: str) -> None:
    """Print an error as one line on standard error."""
    messages.print(Text("error: ", style="bold red") + Text(_one_line(message)), soft_wrap=True)


def step(message: str) -> None:
    """Say what happens now, on standard error."""
    messages.print(Text("• ", style="cyan") + Text(_one_line(message)), soft_wrap=True)


def quiet(message: str) -> None:
    """Say nothing: what `step` is when a script listens."""


@contextmanager
def progress(what: str, *, quiet: bool, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """Show a running count and rate on a terminal, and the time left where `total` is known; gives a function that
    takes how many more are done."""
    with _bar(quiet=quiet, timed=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def flow_progress(*, quiet: bool, total: int | None = None) -> Iterator[None]:
    """Show on a terminal how many notes the flow in this process has enriched."""
    before = _enriched()
    stop = threading.Event()
    with _bar(quiet=quiet) as bar:
        task = bar.add_task("processing", total=total)

        def watch() -> None:
            while not stop.wait(REFRESH_SECONDS):
                bar.update(task, completed=_enriched() - before)

        watcher = threading.Thread(target=watch, name="progress", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()
            bar.update(task, completed=_enriched() - before)


def leave_progress() -> None:
    """Give the terminal back as it was, for a process that ends at once while it shows progress."""
    if messages.is_terminal:
        # Not through the console: the thread that paints the progress may hold it just now.
        os.write(messages.file.fileno(), b"\x1b[?25h\n")


def _enriched() -> int:
    return int(
        sum(
            sample.value
            for metric in telemetry.NOTES.collect()
            for sample in metric.samples
            if sample.name.endswith("_total")
        )
    )


class _Count(ProgressColumn):
    """So many documents, of so many where that is known."""

    def render(self, task: Task) -> Text:
        of_all = "" if task.total is None else f"/{task.total:.0f}"
        return Text(f"{task.completed:.0f}{of_all} documents", style="green")


class _Rate(ProgressColumn):
    """Documents a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="dim")


def _bar(*, quiet: bool, timed: bool = False) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(),
        _Count(table_column=Column(no_wrap=True)),
        *((_Rate(table_column=Column(no_wrap=True)), TimeRemainingColumn(compact=True)) if timed else ()),
        TimeElapsedColumn(),
        console=messages,
        disable=quiet or not messages.is_terminal,
    )


def show_redriven(done: Redriven, *, as_json: bool) -> None:
    """Print what a redrive sent and what it left alone."""
    if as_json:
        _print_json(done)
        return
    for name in done.sent:
        output.print(Text(name), soft_wrap=True)
    step(f"{'would be put' if done.dry_run else 'put'} on the stream again: {len(done.sent)}")
    for reason, count in sorted(done.skipped.items()):
        step(f"left alone, {reason}: {count}")


def show_environment(variables: Mapping[str, str]) -> None:
    """Print variables as shell exports."""
    for name, value in variables.items():
        output.print(f"export {name}={value}", markup=False, soft_wrap=True)
    messages.print("local AWS is running; Ctrl-C ends it and forgets everything", style="dim")


def show_fields(fields: Mapping[str, Any], *, title: str, as_json: bool) -> None:
    """Print one record as names and values."""
    if as_json:
        _print_json(fields)
        return
    _print_record(fields, title=title)


def show_rows(rows: Sequence[Mapping[str, Any]], *, as_json: bool, title: str | None = None) -> None:
    """Print rows as a table; when that would not fit, one record below the other."""
    if as_json:
        _print_json(rows)
        return
    if not rows:
        output.print("no rows", style="dim")
        return
    cells = {name: [_cell(row[name]) for row in rows] for name in rows[0]}
    longest = {name: max(len(name), *(len(cell) for cell in column)) for name, column in cells.items()}
    least = [length if length <= SHORT_CELL else LEAST_TEXT for length in longest.values()]
    if sum(least) + GAP * (len(least) - 1) > output.width:
        for number, row in enumerate(rows, start=1):
            _print_record(row, title=f"row {number}", before=number > 1)
        return
    table = _table(title)
    for name, length in longest.items():
        numeric = all(isinstance(row[name], int | float) for row in rows)
        table.add_column(
            Text(_one_line(name)),
            justify="right" if numeric else "left",
            no_wrap=length <= SHORT_CELL,
            overflow="fold",
        )
    for row_cells in zip(*cells.values(), strict=True):
        table.add_row(*row_cells)
    _print(table)


def _print_record(fields: Mapping[str, Any], *, title: str, before: bool = False) -> None:
    if before:
        output.print()
    table = _table(title)
    table.show_header = False
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in fields.items():
        table.add_row(Text(_one_line(name)), _cell(value))
    _print(table)


def show_snapshots(rows: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    """Print snapshots, a line each."""
    if as_json:
        _print_json(rows)
        return
    shown = ("id", "name", "created_at", "execution", "epoch", "size_bytes")
    show_rows([{name: row[name] for name in shown} for row in rows], as_json=False)


def show_hits(hits: Sequence[SearchHit], *, as_json: bool) -> None:
    """Print search results, best first, a line each (two on a narrow terminal)."""
    if as_json:
        _print_json([asdict(hit) for hit in hits])
        return
    if not hits:
        output.print("nothing found", style="dim")
        return
    if output.width < NARROW:
        for hit in hits:
            text = Text(f"{hit.score:.2f}  ") + Text(visible(hit.note_id), style="dim") + Text("\n") + _cell(hit.text)
            text.truncate(output.width * 3)
            _print(text)
        return
    table = _table(None)
    table.expand = True
    table.add_column("score", justify="right")
    table.add_column("source", no_wrap=True)
    table.add_column("note", no_wrap=True, style="dim", min_width=32)
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)
    for hit in hits:
        table.add_row(f"{hit.score:.2f}", _cell(hit.source), _cell(hit.note_id), _cell(hit.text))
    _print(table)


def show_note(note: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a note's metadata; lists are shortened on a terminal."""
    if as_json:
        _print_json(note)
        return
    show_fields(
        {name: _short(value) for name, value in note.items() if name != "index_keys"}, title="note", as_json=False
    )


class LeftAlone:
    """Says what a producer leaves alone as it comes, and counts it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, name: str, reason: str) -> None:
        """Say that `name` is left alone, and why."""
        self.count += 1
        messages.print(Text("left alone: ", style="yellow") + Text(_one_line(f"{name}: {reason}")), soft_wrap=True)


def show_summary(summary: Any, *, as_json: bool) -> None:
    """Print what a producer did, and how many documents of which type where its `summary` tells."""
    fields = asdict(summary)
    if as_json:
        _print_json(fields)
        return
    types = fields.pop("by_content_type", {})
    show_fields(fields, title="ingested", as_json=False)
    if types:
        by_count = sorted(types.items(), key=lambda item: -item[1])
        show_rows([{"content_type": name, "documents": count} for name, count in by_count], as_json=False)


def _short(value: Any) -> Any:
    if isinstance(value, list) and len(value) > 5:
        return [*value[:5], f"… {len(value) - 5} more"]
    return value


def _table(title: str | None) -> Table:
    heading = None if title is None else Text(_one_line(title), style="italic")
    return Table(title=heading, title_justify="left", pad_edge=False, box=None, header_style="bold")


def _print(renderable: Table | Text) -> None:
    """Print without the blanks that pad a column: they are noise in a file, and wrap when a window gets narrower."""
    with output.capture() as captured:
        output.print(renderable)
    output.file.write(_TRAILING.sub(lambda end: end[0].replace(" ", ""), captured.get()))


def _cell(value: Any) -> Text:
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, datetime):
        return Text(value.strftime("%Y-%m-%d %H:%M:%S"))
    if isinstance(value, float):
        return Text(f"{value:.2f}")
    if isinstance(value, list) and all(isinstance(item, str | int | float) for item in value):
        text = ", ".join(str(item) for item in value)
    elif isinstance(value, list | dict):
        text = orjson.dumps(value, default=str, option=orjson.OPT_NON_STR_KEYS).decode()
    else:
        text = str(value)
    text = _one_line(text[: LONGEST_CELL * 4])
    return Text(text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 1] + "…")


def _one_line(text: str) -> str:
    return visible(" ".join(text.split()))


def _print_json(value: Any) -> None:
    def plain(other: Any) -> Any:
        if isinstance(other, bytes):
            return other.decode("utf-8", errors="replace")
        if is_dataclass(other) and not isinstance(other, type):
            return asdict(other)
        return str(other)

    text = orjson.dumps(
        value, default=plain, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY
    )
    output.file.write(visible_json(text.decode()) + "\n")
