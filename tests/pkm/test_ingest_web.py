"""`pkm ingest web` as a person or a script runs it, and as the machine ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from core import aws
from core.settings import Settings
from faults.proxy import Fault, fault_proxy
from producers.web.crawl import crawl
from web_site import Page, Site, html, redirect, web_site

PKM = Path(sys.executable).with_name("pkm")
SECONDS = 120


@pytest.fixture
def site() -> Iterator[Site]:
    with web_site() as running:
        yield running


@pytest.fixture
def stream(settings: Settings) -> Any:
    client = aws.kinesis_client(settings)
    client.create_stream(StreamName=settings.stream, ShardCount=1)
    client.get_waiter("stream_exists").wait(StreamName=settings.stream, WaiterConfig={"Delay": 1})
    return client


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "COLUMNS": "120", "PKM_WEB_PACE_SECONDS": "0", **variables}


def ingest(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PKM), "ingest", "web", *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def records(client: Any, settings: Settings) -> list[dict[str, Any]]:
    shard = client.list_shards(StreamName=settings.stream)["Shards"][0]["ShardId"]
    iterator = client.get_shard_iterator(StreamName=settings.stream, ShardId=shard, ShardIteratorType="TRIM_HORIZON")
    found = client.get_records(ShardIterator=iterator["ShardIterator"], Limit=1000)["Records"]
    return [orjson.loads(record["Data"]) for record in found]


def objects(settings: Settings) -> set[str]:
    found = aws.s3_client(settings).list_objects_v2(Bucket=settings.bucket, Prefix="bronze/").get("Contents", [])
    return {entry["Key"] for entry in found}


def test_a_site_is_ingested_with_a_summary_that_tells_what_was_left_alone(
    settings: Settings, stream: Any, site: Site
) -> None:
    site.pages |= {
        "/": html("home", "/a", "/private", "/away"),
        "/a": html("page a"),
        "/away": redirect("https://elsewhere.example/"),
        "/robots.txt": Page(b"User-agent: *\nDisallow: /private"),
    }
    done = ingest(site.url, "--depth", "1", "--json", PKM_ALLOW_PRIVATE_ADDRESSES="1")
    assert done.returncode == 0, done.stderr
    summary = orjson.loads(done.stdout)
    told = {name: summary[name] for name in ("announced", "unchanged", "robots", "off_site", "refused")}
    assert told == {"announced": 2, "unchanged": 0, "robots": 1, "off_site": 1, "refused": 0}
    assert "is not for robots" in done.stderr
    done = ingest(site.url, "--depth", "1", PKM_ALLOW_PRIVATE_ADDRESSES="1")
    assert done.returncode == 0, done.stderr
    assert "unchanged" in done.stdout
    assert len(records(stream, settings)) == 2


def test_a_private_address_is_refused_with_what_to_do(settings: Settings, stream: Any, site: Site) -> None:
    done = ingest(site.url)
    assert done.returncode == 1
    assert "127.0.0.1, which is not a public address" in done.stderr
    assert "PKM_ALLOW_PRIVATE_ADDRESSES=1" in done.stderr
    assert "Traceback" not in done.stderr
    assert site.requests == []
    assert ingest("ftp://example.org/").returncode == 1


def test_a_run_that_is_killed_between_the_objects_and_the_stream_is_completed_by_another(
    settings: Settings, stream: Any, site: Site
) -> None:
    site.pages |= {"/": html("home", "/a", "/b"), "/a": html("page a", tagged=True), "/b": html("page b")}
    with fault_proxy(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        proxy.rules = [Fault("hang", operation="PutRecords")]
        process = subprocess.Popen(
            [str(PKM), "ingest", "web", site.url, "--depth", "1"],
            env=environment(PKM_ALLOW_PRIVATE_ADDRESSES="1", AWS_ENDPOINT_URL_KINESIS=proxy.url),
        )
        ends = time.monotonic() + SECONDS
        while not proxy.faults["hang"]:
            assert process.poll() is None
            assert time.monotonic() < ends
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait(SECONDS)
        stored = objects(settings)
        assert len(stored) == 3
        assert records(stream, settings) == []
    done = ingest(site.url, "--depth", "1", "--json", PKM_ALLOW_PRIVATE_ADDRESSES="1")
    assert done.returncode == 0, done.stderr
    summary = orjson.loads(done.stdout)
    assert (summary["announced"], summary["uploaded"], summary["already_there"]) == (3, 0, 3)
    assert objects(settings) == stored
    assert len({record["event_id"] for record in records(stream, settings)}) == 3


def test_a_page_reaches_silver_without_its_navigation_and_leaves_it_when_it_is_gone(world: Any, site: Site) -> None:
    text = "Water boils at a hundred degrees, and lower where the air is thin."
    body = f"<title>Water</title><nav><a href=/shop>Shop</a></nav><main><h1>Water</h1><p>{text} Caf\xe9.</p></main>"
    site.pages["/water"] = Page(body.encode("latin-1"), headers={"Content-Type": "text/html; charset=iso-8859-1"})
    settings = world.settings.model_copy(update={"allow_private_addresses": True, "web_pace_seconds": 0.0})
    crawl([f"{site.url}/water"], settings=settings)
    world.run()
    (row,) = world.table("silver.notes")
    assert (row["title"], row["text"], row["links"]) == ("Water", f"Water\n\n{text} Caf\xe9.", [])

    site.pages["/water"] = Page(b"", 410)
    assert crawl([f"{site.url}/water"], settings=settings).deleted == 1
    world.run()
    assert world.table("silver.notes") == []
