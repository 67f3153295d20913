"""The commands `pkm snapshots …`."""

from __future__ import annotations

from typing import Annotated

import typer

from pkm import screen
from pkm.options import AsJson, configured_settings

__all__ = ["app"]

app = typer.Typer(help="Go back to a recovery snapshot, or keep one by name.", no_args_is_help=True)

OfFlow = Annotated[str, typer.Option(help="Which flow: knowledge.")]


@app.command("ls")
def list_all(flow: OfFlow = "knowledge", as_json: AsJson = False) -> None:
    """List snapshots; the next run resumes the first."""
    from pkm.snapshots import list_snapshots

    screen.show_snapshots(list_snapshots(configured_settings(), flow=flow), as_json=as_json)


@app.command("save")
def save(
    name: Annotated[str, typer.Argument(help="A name of your own.")],
    flow: OfFlow = "knowledge",
    as_json: AsJson = False,
) -> None:
    """Keep the newest snapshot by name.

    It stays as long as it has the name. A running flow goes on.
    """
    from pkm import snapshots

    screen.show_fields(snapshots.save(configured_settings(), name, flow=flow), title="saved", as_json=as_json)


@app.command("forget")
def forget(
    name: Annotated[str, typer.Argument(help="The savepoint.")],
    flow: OfFlow = "knowledge",
    as_json: AsJson = False,
) -> None:
    """Take a savepoint's name away.

    It expires like any other snapshot.
    """
    from pkm import snapshots

    screen.show_fields(snapshots.forget(configured_settings(), name, flow=flow), title="forgotten", as_json=as_json)


@app.command("restore")
def restore(
    snapshot: Annotated[str, typer.Argument(metavar="ID-or-NAME")],
    flow: OfFlow = "knowledge",
    force: Annotated[
        bool,
        typer.Option("--force", help="Although the flow has other steps now, or an old manifest was put back."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the next run resume from a snapshot.

    A flow that runs now is stopped.
    """
    from pkm import snapshots

    chosen = snapshots.restore(configured_settings(), snapshot, flow=flow, force=force)
    screen.show_fields(chosen, title="chosen", as_json=as_json)
