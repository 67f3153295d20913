"""Objects that others drop: each version announced once, read where it lies or copied, never the product's own."""

from __future__ import annotations

from typing import Any

import obstore
import pytest
from botocore.exceptions import ClientError

from announced import Refusing, records
from core import aws
from core.errors import MissingError, SettingsError, UnreachableError
from core.records import note_identity
from core.settings import Settings
from producers import objects
from producers.objects import PickedUp, pick_up


@pytest.fixture
def s3(settings: Settings) -> Any:
    return aws.s3_client(settings)


def drop(s3: Any, bucket: str, **files: str) -> None:
    for name, text in files.items():
        s3.put_object(Bucket=bucket, Key=f"inbox/{name}.md", Body=text.encode(), ContentType="text/markdown")


def run(settings: Settings, bucket: str, **options: Any) -> tuple[PickedUp, dict[str, str]]:
    left_alone: dict[str, str] = {}
    done = pick_up(f"s3://{bucket}/inbox/", settings=settings, on_left_alone=left_alone.__setitem__, **options)
    return done, left_alone


def test_objects_of_the_products_bucket_are_announced_where_they_lie(
    settings: Settings, kinesis: Any, s3: Any
) -> None:
    drop(s3, settings.bucket, a="# A", b="# B")
    done, left_alone = run(settings, settings.bucket)
    assert (done.announced, done.uploaded, done.already_there, left_alone) == (2, 0, 2, {})
    assert done.by_content_type == {"text/markdown": 2}
    first, second = records(kinesis, settings)
    assert (first["s3_key"], second["s3_key"]) == ("inbox/a.md", "inbox/b.md")
    assert first["bucket"] == settings.bucket
    assert first["note_id"] == note_identity("s3", f"s3://{settings.bucket}/inbox/a.md")
    assert first["content_size"] == 3
    assert first["metadata"]["path"] == "inbox/a.md"


def test_only_what_is_new_or_changed_is_announced_again(settings: Settings, kinesis: Any, s3: Any) -> None:
    drop(s3, settings.bucket, a="# A", b="# B")
    run(settings, settings.bucket)
    done, _ = run(settings, settings.bucket)
    assert (done.announced, done.unchanged) == (0, 2)
    drop(s3, settings.bucket, b="# B, changed", c="# C")
    s3.delete_object(Bucket=settings.bucket, Key="inbox/a.md")
    done, _ = run(settings, settings.bucket)
    assert (done.announced, done.unchanged) == (2, 0)
    _, old, new, _ = records(kinesis, settings)
    assert old["note_id"] == new["note_id"]
    assert old["event_id"] != new["event_id"]
    # What came back is announced with the event id that it had.
    drop(s3, settings.bucket, a="# A")
    assert run(settings, settings.bucket)[0].announced == 1
    assert records(kinesis, settings)[-1]["event_id"] == records(kinesis, settings)[0]["event_id"]
    assert run(settings, settings.bucket, from_start=True)[0].announced == 3


def test_objects_of_another_bucket_are_copied_once(settings: Settings, kinesis: Any, s3: Any) -> None:
    s3.create_bucket(Bucket="somebody-elses")
    drop(s3, "somebody-elses", a="# A", b="# B")
    done, _ = run(settings, "somebody-elses")
    assert (done.announced, done.uploaded, done.already_there) == (2, 2, 0)
    for record, text in zip(records(kinesis, settings), (b"# A", b"# B"), strict=True):
        assert record["s3_key"] == f"bronze/raw/s3/{record['event_id']}"
        assert record["bucket"] == settings.bucket
        found = obstore.get(aws.object_store(settings), record["s3_key"])
        assert bytes(found.bytes()) == text
        assert found.attributes["Content-Type"] == "text/markdown"
    assert run(settings, "somebody-elses")[0] == PickedUp(unchanged=2)
    done, _ = run(settings, "somebody-elses", from_start=True)
    assert (done.announced, done.uploaded, done.already_there) == (2, 0, 2)


def test_what_the_store_does_not_copy_is_copied_through_memory(
    settings: Settings, kinesis: Any, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.create_bucket(Bucket="somebody-elses")
    drop(s3, "somebody-elses", a="# A", b="# B", c="# C")
    refused = {"a": "NotImplemented", "b": "PreconditionFailed"}
    make = aws.s3_client

    def without_copies(*arguments: Any, **options: Any) -> Any:
        client = make(*arguments, **options)
        copy = client.copy_object

        def copy_object(**request: Any) -> Any:
            code = refused.get(request["CopySource"]["Key"][6])
            if code:
                raise ClientError({"Error": {"Code": code, "Message": "no"}}, "CopyObject")
            return copy(**request)

        client.copy_object = copy_object
        return client

    monkeypatch.setattr(aws, "s3_client", without_copies)
    done, left_alone = run(settings, "somebody-elses")
    assert (done.announced, done.uploaded, done.left_alone) == (2, 2, 1)
    assert left_alone == {"s3://somebody-elses/inbox/b.md": "changed while it was copied"}
    key = records(kinesis, settings)[0]["s3_key"]
    assert bytes(obstore.get(aws.object_store(settings), key).bytes()) == b"# A"
    refused.clear()
    assert run(settings, "somebody-elses")[0].announced == 1


def test_what_the_flow_could_not_read_is_left_alone(settings: Settings, kinesis: Any, s3: Any) -> None:
    small = settings.model_copy(update={"max_object_bytes": 10})
    drop(s3, settings.bucket, a="# A", large="# Larger than ten bytes")
    for key in ("inbox/", "inbox//double.md", "inbox/../up.md", "inbox/tab\t.md"):
        s3.put_object(Bucket=settings.bucket, Key=key, Body=b"x" if key.endswith("md") else b"")
    done, left_alone = run(small, settings.bucket)
    assert (done.announced, done.left_alone) == (1, 4)
    base = f"s3://{settings.bucket}/inbox/"
    assert left_alone.pop(f"{base}large.md") == "is larger than 10 bytes (PKM_MAX_OBJECT_BYTES)"
    assert set(left_alone) == {f"{base}/double.md", f"{base}../up.md", f"{base}tab\t.md"}


def test_a_run_that_failed_is_completed_by_the_next_and_announces_no_part_of_it_twice(
    settings: Settings, kinesis: Any, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop(s3, settings.bucket, a="1", b="2", c="3", d="4")
    monkeypatch.setattr(objects, "CHUNK", 2)
    client = Refusing(kinesis, iter([set(), *[{0, 1}] * 100]))
    monkeypatch.setattr(aws, "kinesis_client", lambda settings: client)
    monkeypatch.setattr("producers.stream.LONGEST_PAUSE_SECONDS", 0.0)
    with pytest.raises(UnreachableError, match="the same command completes"):
        run(settings, settings.bucket)
    client.refused = iter([])
    done, _ = run(settings, settings.bucket)
    assert (done.announced, done.unchanged) == (2, 2)
    assert [record["metadata"]["path"][6] for record in records(kinesis, settings)] == list("abcd")


@pytest.mark.parametrize(
    "prefix",
    ["warehouse/", "warehouse", "snapshots/knowledge/", "producers/cursors", "bronze/raw/files/", "vectors/x"],
)
def test_the_products_own_prefixes_are_refused(settings: Settings, prefix: str) -> None:
    with pytest.raises(SettingsError, match="the product's own objects"):
        pick_up(f"s3://{settings.bucket}/{prefix}", settings=settings, on_left_alone=lambda *_: None)


def test_a_whole_bucket_is_its_documents_alone(settings: Settings, kinesis: Any, s3: Any) -> None:
    drop(s3, settings.bucket, a="# A")
    for key in ("warehouse/x", "bronze/raw/files/x", "snapshots/x", "top.md"):
        s3.put_object(Bucket=settings.bucket, Key=key, Body=b"x")
    for announced in (2, 0):
        done = pick_up(f"s3://{settings.bucket}", settings=settings, on_left_alone=lambda *_: None)
        assert (done.announced, done.left_alone) == (announced, 0)
    assert {record["s3_key"] for record in records(kinesis, settings)} == {"inbox/a.md", "top.md"}


@pytest.mark.parametrize("address", ["inbox", "https://bucket/inbox", "s3://", "s3:///inbox"])
def test_what_is_no_place_on_s3_is_refused(settings: Settings, address: str) -> None:
    with pytest.raises(SettingsError, match="is no place on S3"):
        pick_up(address, settings=settings, on_left_alone=lambda *_: None)


def test_a_bucket_that_does_not_exist_is_named(settings: Settings) -> None:
    with pytest.raises(MissingError, match='bucket "no-such-bucket"'):
        pick_up("s3://no-such-bucket/", settings=settings, on_left_alone=lambda *_: None)
