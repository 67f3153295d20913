"""The commands `pkm ingest …`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from core.errors import UnreachableError
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


@app.command("api")
def ingest_api(
    url: Annotated[str, typer.Argument(metavar="URL", help="First page; PKM_API_TOKEN is sent as bearer token.")],
    items: Annotated[str, typer.Option(metavar="PATH", help="JSONPath of the items in a page, such as $.data[*].")],
    identifier: Annotated[
        str, typer.Option("--id", metavar="PATH", help="JSONPath of an item's id, the same for all its versions.")
    ] = "$.id",
    content: Annotated[
        str | None, typer.Option(metavar="PATH", help="JSONPath of an item's text; default: the item as JSON.")
    ] = None,
    content_type: Annotated[str | None, typer.Option(metavar="TYPE", help="Content type of such texts.")] = None,
    name: Annotated[
        str | None, typer.Option(help="What identities begin with; default: the URL without its query.")
    ] = None,
    next_page: Annotated[
        str | None,
        typer.Option("--next", metavar="PATH", help="JSONPath of the next page's address; default: Link header."),
    ] = None,
    next_param: Annotated[
        str | None, typer.Option(metavar="NAME", help="Query parameter for --next, when that is a token.")
    ] = None,
    page_param: Annotated[
        str | None, typer.Option(metavar="NAME", help="Query parameter that numbers the pages.")
    ] = None,
    cursor: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="JSONPath in an item; its largest value is kept."),
    ] = None,
    cursor_param: Annotated[
        str | None, typer.Option(metavar="NAME", help="Query parameter that takes that value, such as since.")
    ] = None,
    feed: Annotated[
        bool, typer.Option("--feed", help="Items are only ever added at the end: go on at the last page.")
    ] = False,
    max_pages: Annotated[int, typer.Option(min=1, help="Read at most this many pages.")] = 10_000,
    from_start: FromStart = False,
    as_json: AsJson = False,
) -> None:
    """Ingest the items of a JSON API, page by page, from where the last run ended."""
    from producers.api import ApiSource, poll

    settings = configured_settings(patient=False)
    source = ApiSource(
        url=url,
        items=items,
        id=identifier,
        content=content,
        content_type=content_type,
        name=name,
        next=next_page,
        next_parameter=next_param,
        page_parameter=page_param,
        cursor=cursor,
        cursor_parameter=cursor_param,
        feed=feed,
    )
    with screen.progress("polling", quiet=as_json) as advance:
        summary = poll(
            source,
            settings=settings,
            max_pages=max_pages,
            from_start=from_start,
            on_progress=advance,
            on_left_alone=screen.LeftAlone(),
        )
    screen.show_summary(summary, as_json=as_json)


@app.command("serve")
def ingest_serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes any that is free.")] = 8080,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of /metrics; default: there is none.")
    ] = None,
    without_tokens: Annotated[
        bool, typer.Option("--without-tokens", help="Let everybody on this machine in; loopback addresses only.")
    ] = False,
) -> None:
    """Take in notes and files over HTTP, until SIGTERM or Ctrl-C; /docs is the reference."""
    from producers.service.server import serve

    serve(
        configured_settings(patient=False),
        host=host,
        port=port,
        without_tokens=without_tokens,
        metrics_port=metrics_port,
        on_ready=lambda address: screen.step(f"serving {address}, reference at {address}/docs"),
    )


@app.command("web")
def ingest_web(
    urls: Annotated[
        list[str], typer.Argument(metavar="URL…", help="Pages; with --sitemap, sites or their sitemaps.")
    ],
    depth: Annotated[int, typer.Option(min=0, max=100, help="Follow links of the same site this far.")] = 0,
    sitemap: Annotated[bool, typer.Option("--sitemap", help="Read the pages that the site's sitemaps name.")] = False,
    max_pages: Annotated[int, typer.Option(min=1, max=100_000, help="Visit this many pages for each URL.")] = 1000,
    from_start: FromStart = False,
    as_json: AsJson = False,
) -> None:
    """Ingest pages of the web that are new or changed since the last run; those that are gone are deleted."""
    from producers.web.crawl import crawl

    settings = configured_settings(patient=False)
    with screen.progress("visiting", quiet=as_json) as advance:
        summary = crawl(
            urls,
            settings=settings,
            depth=depth,
            sitemap=sitemap,
            max_pages=max_pages,
            from_start=from_start,
            on_progress=advance,
            on_left_alone=screen.LeftAlone(),
        )
    screen.show_summary(summary, as_json=as_json)
    if summary.failed_starts:
        raise UnreachableError("; ".join(f"{url}: {reason}" for url, reason in summary.failed_starts.items()))
