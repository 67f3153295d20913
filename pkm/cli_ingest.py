"""The commands `pkm ingest …`."""

from __future__ import annotations

from typing import Annotated

import typer

from pkm import screen
from pkm.options import AsJson, configured_settings

__all__ = ["app"]

app = typer.Typer(help="Put documents on S3 and announce them on the stream.", no_args_is_help=True)


@app.command("files")
def ingest_files(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="Files, folders, globs, or - for standard input.")
    ],
    as_json: AsJson = False,
) -> None:
    """Ingest files and folders."""
    from producers import announce, files

    settings = configured_settings(patient=False)
    with screen.progress("ingesting", quiet=as_json) as advance:
        summary = announce.announce(files.files(paths, settings=settings), settings=settings, on_progress=advance)
    screen.show_summary(summary, as_json=as_json)
