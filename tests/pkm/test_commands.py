"""The commands as a person or a script runs them: output, exit codes, one-line errors."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import obstore
import orjson
import pytest

from core import aws
from core.layout import own_prefixes
from core.settings import Settings

PKM = Path(sys.executable).with_name("pkm")
SECONDS = 120


def pkm(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(PKM), *arguments],
        env={**os.environ, "COLUMNS": "120", **variables},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def json_of(*arguments: str) -> Any:
    done = pkm(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return orjson.loads(done.stdout)


def test_documents_go_in_at_one_end_and_answers_come_out_at_the_other(settings: Settings, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "curie.md").write_text("# Radium\n\nMarie Curie worked on radioactivity in Paris.\n")
    (notes / "bread.html").write_text("<html><title>Bread</title><p>Mix flour, water, salt and yeast.</p></html>")

    assert json_of("init")["stream"] == settings.stream
    assert json_of("init")["bucket"] == settings.bucket
    assert json_of("ingest", "files", str(notes))["announced"] == 2
    assert json_of("status")["lag_seconds"] > 0
    ran = pkm("run", "--until-caught-up")
    assert ran.returncode == 0, ran.stderr
    assert "Traceback" not in ran.stderr

    hits = json_of("search", "a recipe for baking", "-k", "1")
    assert list(hits[0]) == ["note_id", "chunk", "score", "text", "source"]
    assert "flour" in hits[0]["text"]
    note = json_of("note", hits[0]["note_id"])
    assert (note["title"], note["source_type"]) == ("Bread", "files")
    assert json_of("sql", "select title from silver.notes order by title") == [
        {"title": "Bread"},
        {"title": "Radium"},
    ]
    status = json_of("status")
    assert status["rows"]["bronze.notes"] == status["rows"]["metadata (notes)"] == 2
    assert status["lag_seconds"] == 0
    assert status["snapshots"] >= 1
    shards = status["shards"]
    assert len(shards) == status["open_shards"]
    assert sum(shard["records"] for shard in shards) == 2
    assert all(shard["reads"] >= 1 and shard["millis_behind_latest"] == 0 for shard in shards)
    assert sum(shard["read_sequence_number"] is not None for shard in shards) in (1, 2)
    keys = [item["path"] for page in obstore.list(aws.object_store(settings)) for item in page]
    assert {key.partition("/")[0] for key in keys} >= {"warehouse", "vectors", "metadata", "snapshots"}
    assert all(key.startswith((*own_prefixes(settings), "bronze/raw/")) for key in keys)
    screens = [pkm("search", "baking"), pkm("note", hits[0]["note_id"]), pkm("status"), pkm("sql", "select 1 as one")]
    screens.append(pkm("peek"))
    for screen in screens:
        assert screen.returncode == 0
        assert screen.stderr == ""
        assert all(len(line) <= 120 for line in screen.stdout.splitlines())


# Each case is a process of its own, of seconds: one of each kind in every run.
slow = partial(pytest.param, marks=pytest.mark.thorough)


@pytest.mark.parametrize(
    ("arguments", "variables", "said"),
    [
        (("status",), {"PKM_BUKET": "x"}, "PKM_BUCKET"),
        slow(("status",), {"PKM_SHARDS": "many"}, "PKM_SHARDS"),
        (("init",), {"PKM_EMBEDDING_MODEL": "/nowhere/model"}, "/nowhere/model"),
        (("init",), {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "PKM_ENRICH": "none"}, "127.0.0.1:9"),
        slow(("init",), {"AWS_ENDPOINT_URL_KINESIS": "http://127.0.0.1:9", "PKM_ENRICH": "none"}, "127.0.0.1:9"),
        slow(("init",), {"AWS_ENDPOINT_URL_GLUE": "http://127.0.0.1:9", "PKM_ENRICH": "none"}, "127.0.0.1:9"),
        slow(("note", "any"), {"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, "127.0.0.1:9"),
        (("status",), {"AWS_ENDPOINT_URL_S3": "nonsense"}, "AWS_ENDPOINT_URL_S3"),
        slow(("status",), {"PKM_CATALOG": "rest"}, "PKM_CATALOG_URI"),
        slow(("status",), {"PKM_CATALOG": "sql", "PKM_CATALOG_URI": "postgresql://u:secret@h/d"}, "driver"),
        (("status",), {"AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"}, "credentials"),
        (("run",), {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "127.0.0.1:9"),
        slow(("run",), {}, "pkm init"),
        (("run", "nothing"), {}, "knowledge"),
        (("status",), {}, "pkm init"),
        (("search", "anything"), {}, "pkm init"),
        slow(("note", "anything"), {}, "pkm init"),
        (("sql", "selec"), {}, "selec"),
        (("ingest", "files", "/nowhere/notes"), {}, "/nowhere/notes"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    settings: Settings, arguments: tuple[str, ...], variables: dict[str, str], said: str
) -> None:
    done = pkm(*arguments, **variables)

    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.strip().splitlines()) == 1
    assert said in done.stderr
    assert "secret@" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("found", "said"),
    [("", "there are no AWS credentials"), ("aws_access_key_id=a\naws_secret_access_key=b", "profile")],
)
def test_credentials_that_not_every_client_can_use_are_refused(
    settings: Settings, tmp_path: Path, found: str, said: str
) -> None:
    file = tmp_path / "credentials"
    file.write_text(f"[default]\n{found}\n")

    done = pkm(
        "status",
        AWS_ACCESS_KEY_ID="",
        AWS_SECRET_ACCESS_KEY="",
        AWS_SHARED_CREDENTIALS_FILE=str(file),
        AWS_EC2_METADATA_DISABLED="true",
    )

    assert done.returncode == 1
    assert said in done.stderr


@pytest.mark.parametrize("target", ["/dev/full", None])
@pytest.mark.parametrize("option", [(), ("--json",)])
def test_output_that_can_not_be_written_is_no_traceback(
    settings: Settings, target: str | None, option: tuple[str, ...]
) -> None:
    command = [str(PKM), "sql", "select 1", *option]
    shell = f'"$0" "$@" >{target}' if target else '"$0" "$@" | true; exit "${PIPESTATUS[0]}"'

    done = subprocess.run(
        ["bash", "-c", shell, *command], capture_output=True, text=True, timeout=SECONDS, check=False
    )

    assert done.returncode in {0, 1} if target is None else done.returncode == 1
    assert "Traceback" not in done.stderr


def test_wrong_usage_is_exit_code_2() -> None:
    assert pkm("no-such-command").returncode == 2
    assert pkm("run", "--workers", "none").returncode == 2


def test_a_query_sees_the_tables_and_nothing_else(settings: Settings) -> None:
    done = pkm("sql", "select * from read_csv('/etc/passwd')")

    assert done.returncode == 1
    assert "root:" not in done.stdout
