"""The `pkm` command: each sub-command reads its options, calls one function and shows the result."""

from __future__ import annotations

import atexit
import errno
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from core import stopping
from core.errors import MissingError, PkmError, VerificationError
from core.memory import keep_off_disks
from pkm import cli_ingest, cli_snapshots, screen
from pkm.options import AsJson, configured_settings

__all__ = ["app", "main"]

app = typer.Typer(
    name="pkm",
    help="Streaming ingestion for a knowledge lakehouse: documents in, tables, vectors and metadata out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(cli_ingest.app, name="ingest")
dlq = typer.Typer(help="Look at dead letters, and put them on the stream again.", no_args_is_help=True)
app.add_typer(dlq, name="dlq")
app.add_typer(cli_snapshots.app, name="snapshots")

# A full disk or quota, a terminal that is gone.
_UNWRITABLE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO})


def main() -> None:
    """Run the command line; a PkmError becomes one line on standard error and exit code 1."""
    keep_off_disks()
    try:
        app()
        code = 0
    except PkmError as error:
        screen.complain(str(error))
        code = 1
    except OSError as error:
        if error.errno not in _UNWRITABLE:
            raise
        screen.complain(f"the output can't be written: {error.strerror}")
        code = 1
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else int(ending.code is not None)
    _leave(code)


def _leave(code: int) -> NoReturn:
    # The Rust clients keep threads that may let go of a Python object just now. While the interpreter is torn down
    # that aborts the process (exit code 134), so it ends without being torn down once its own clean-up is done.
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            # None when the shell closed it (`>&-`).
            if stream is not None:
                stream.flush()
        except OSError:
            code = code or 1
    os._exit(code)


@app.command()
def demo(
    path: Annotated[
        Path | None, typer.Option(help="Folder of documents; default: READMEs of installed packages.")
    ] = None,
    documents: Annotated[int, typer.Option(min=1, help="At most this many documents.")] = 100,
    question: Annotated[str, typer.Option("--search", help="What to search for at the end.")] = "how to parse a file",
    as_json: AsJson = False,
) -> None:
    """Run it all once on a local AWS: ingest, process, search."""
    from pkm.demo import run_demo
    from pkm.demo_screen import show_demo

    report = run_demo(
        path=path, documents=documents, question=question, show=screen.quiet if as_json else screen.step
    )
    show_demo(report, as_json=as_json)
    if report.missing:
        raise VerificationError("; ".join(report.missing))


@app.command()
def stack(port: Annotated[int, typer.Option(min=1, max=65535, help="Port on loopback.")] = 5000) -> None:
    """Run a local AWS in memory, and print what to export.

    Kinesis, S3 and Glue on loopback, in the foreground; Ctrl-C ends it and forgets everything.
    """
    from pkm.stack import serve

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    serve(port, until=stop, on_ready=screen.show_environment)


@app.command()
def init(as_json: AsJson = False) -> None:
    """Create stream, bucket, tables and stores; safe to repeat."""
    from pkm.initialise import initialise

    screen.show_fields(initialise(configured_settings(patient=False)), title="ready", as_json=as_json)


@app.command()
def run(
    flow: Annotated[str, typer.Argument(help="Which flow: knowledge.")] = "knowledge",
    workers: Annotated[int, typer.Option(min=1, help="Worker threads.")] = 1,
    until_caught_up: Annotated[
        bool, typer.Option("--until-caught-up", help="Stop at the end of the stream.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Restore the newest snapshot, run the flow, keep snapshots on S3."""
    from pkm.running import check_world, run_flow

    settings = configured_settings()
    if until_caught_up:
        settings = settings.model_copy(update={"until_caught_up": True})
    stopping.handle_signals(exit_at_end=False)
    try:
        check_world(settings, flow=flow, workers=workers)
        with screen.flow_progress(quiet=as_json):
            result = run_flow(settings, flow=flow, workers=workers)
    except KeyboardInterrupt:
        if not stopping.requested():
            raise
        result = None
    if result is None or stopping.requested():
        screen.step(f"flow {flow} was stopped; the next run resumes where its last snapshot is")
        return
    screen.show_fields(result, title=f"flow {flow} ended", as_json=as_json)


@app.command()
def replay(
    start: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="POSITION",
            help="trim-horizon, timestamp:ISO8601 or sequence:SHARD:NUMBER (that shard alone); included.",
        ),
    ],
    until: Annotated[
        str | None,
        typer.Option(
            metavar="POSITION",
            help="timestamp:ISO8601 (excluded) or sequence:SHARD:NUMBER (included); default: the stream's end now.",
        ),
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Processing version of the rows; default: the next number.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker threads.")] = 1,
    abandon: Annotated[
        bool, typer.Option("--abandon", help="Forget another replay that has not ended; what it replaced stays.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Process a part of the stream again and replace its rows; stop the flow first. Repeat it to resume it."""
    from pkm.replay import plan_replay, run_replay

    settings = configured_settings()
    stopping.handle_signals(exit_at_end=False)
    try:
        plan = plan_replay(settings, start=start, until=until, version=version, abandon=abandon)
        tell = screen.quiet if as_json else screen.step
        with screen.flow_progress(quiet=as_json):
            result = run_replay(settings, plan, workers=workers, tell=tell)
    except KeyboardInterrupt:
        if not stopping.requested():
            raise
        result = None
    if result is None:
        screen.step("the replay was stopped; the same command resumes it")
        return
    screen.show_fields(result, title="replay ended", as_json=as_json)
    if not as_json:
        screen.step(
            f"the flow goes on with version {settings.processing_version}; to have it write {plan.version}:"
            f" PKM_PROCESSING_VERSION={plan.version}"
        )


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many chunks.")] = 5,
    as_json: AsJson = False,
) -> None:
    """Find the nearest chunks of text."""
    from pkm.query import search_text

    screen.show_hits(search_text(configured_settings(patient=False), text, k=k), as_json=as_json)


@app.command()
def note(note_id: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Show one note's metadata."""
    from sinks import slatedb

    found = slatedb.get_note(configured_settings(patient=False), note_id)
    if found is None:
        raise MissingError(f'there is no note "{note_id}": `pkm search` and the table silver.notes give the ids')
    screen.show_note(found, as_json=as_json)


@app.command()
def sql(query: Annotated[str, typer.Argument(help="DuckDB SQL.")], as_json: AsJson = False) -> None:
    """Query the tables with SQL, such as `from silver.notes`."""
    from pkm.query import run_sql

    # DuckDB would not hear of Ctrl-C before the query ends, and there is nothing to clean up.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    screen.show_rows(run_sql(configured_settings(patient=False), query), as_json=as_json)


Step = Annotated[str | None, typer.Option(help="Only failures of this step: parse, fetch, extract, windows.")]
Error = Annotated[str | None, typer.Option(help="Only failures with this error, such as MissingObject.")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="Only what failed at or after this time (ISO 8601).")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Only what failed before this time (ISO 8601).")]


@dlq.command("ls")
def dlq_ls(
    step: Step = None,
    error: Error = None,
    since: Since = None,
    until: Until = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many, newest first.")] = 100,
    everything: Annotated[bool, typer.Option("--all", help="Also those that are stored or redriven by now.")] = False,
    as_json: AsJson = False,
) -> None:
    """List dead letters that still wait for somebody."""
    from pkm.dead_letters import Selection, list_letters, read_time

    selection = Selection(step=step, error=error, since=read_time(since), until=read_time(until))
    rows = list_letters(configured_settings(), selection, everything=everything, limit=limit)
    screen.show_rows(rows, as_json=as_json)


@dlq.command("show")
def dlq_show(letter: Annotated[str, typer.Argument(metavar="ID")], as_json: AsJson = False) -> None:
    """Show one dead letter with its payload; ID is that of the letter or of its event."""
    from pkm.dead_letters import show_letter

    screen.show_fields(show_letter(configured_settings(), letter), title=letter, as_json=as_json)


@dlq.command("redrive")
def dlq_redrive(
    letters: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="This one; may be repeated.")
    ] = None,
    step: Step = None,
    error: Error = None,
    since: Since = None,
    until: Until = None,
    everything: Annotated[bool, typer.Option("--all", help="All that are open.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent.")] = False,
    as_json: AsJson = False,
) -> None:
    """Put dead letters on the stream again; one that succeeds counts once everywhere."""
    from pkm.dead_letters import Selection, read_time, redrive

    selection = Selection(
        ids=tuple(letters or ()), step=step, error=error, since=read_time(since), until=read_time(until)
    )
    if selection == Selection() and not everything:
        raise typer.BadParameter("say which: --step, --error, --since, --until, --id or --all")
    with screen.progress("redriving", quiet=as_json) as advance:
        done = redrive(configured_settings(), selection, dry_run=dry_run, on_progress=advance)
    screen.show_redriven(done, as_json=as_json)


@app.command()
def peek(
    count: Annotated[int, typer.Option("-n", min=1, max=10_000, help="How many records.")] = 10,
    position: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="POSITION",
            help="latest (the newest), trim-horizon (the oldest), timestamp:ISO8601 or sequence:SHARD:NUMBER.",
        ),
    ] = "latest",
    as_json: AsJson = False,
) -> None:
    """Show records of the stream, the newest or those at a position; moves nothing."""
    from core.settings import parse_start
    from pkm.peek import peek as read_stream
    from pkm.stream_screen import show_peeked

    try:
        parse_start(position)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    show_peeked(read_stream(configured_settings(patient=False), position, count=count), as_json=as_json)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show rows per table, lag, how each shard is read, and the newest snapshot."""
    from pkm.status import status as read_status
    from pkm.stream_screen import show_status

    show_status(read_status(configured_settings(patient=False)), as_json=as_json)
