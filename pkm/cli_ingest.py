"""The commands `pkm ingest …`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from pkm import screen
from pkm.options import AsJson, configured_settings

__all__ = ["app"]

FromStart = Annotated[
    bool, typer.Option("--from-start", help="Forget where the last run ended, and announce everything.")
]

app = typer.Typer(help="Put documents on S3 and announce them on the stream.", no_args_is_help=True)


@app.command("files")
def ingest_files(
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH…", help="Files, folders, globs, or - for standard input.")
    ],
    name: Annotated[
        str | None,
        typer.Option(help="What identities begin with instead of the folder's own name; for folders that share one."),
    ] = None,
    no_ignore: Annotated[
        bool, typer.Option("--no-ignore", help="Read what .gitignore and .pkmignore leave out, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Ingest files and folders."""
    from producers import announce, file_listing, files

    settings = configured_settings(patient=False)
    left_alone = screen.LeftAlone()
    found = list(file_listing.list_files(paths, name=name, ignore=not no_ignore, report=left_alone))
    with screen.progress("ingesting", quiet=as_json, total=len(found)) as advance:
        items = files.read_files(found, settings=settings, on_left_alone=left_alone)
        summary = announce.announce(items, settings=settings, on_progress=advance)
    screen.show_summary(replace(summary, left_alone=left_alone.count), as_json=as_json)


@app.command("s3")
def ingest_s3(
    address: Annotated[str, typer.Argument(metavar="s3://BUCKET/PREFIX", help="Where others drop objects.")],
    from_start: FromStart = False,
    as_json: AsJson = False,
) -> None:
    """Pick up objects that are new or changed since the last run; what is deleted there stays a note."""
    from producers.objects import pick_up

    settings = configured_settings(patient=False)
    with screen.progress("picking up", quiet=as_json) as advance:
        summary = pick_up(
            address,
            settings=settings,
            from_start=from_start,
            on_progress=advance,
            on_left_alone=screen.LeftAlone(),
        )
    screen.show_summary(summary, as_json=as_json)
