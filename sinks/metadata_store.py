"""Opens the SlateDB databases of the metadata store: where they lie, how many there are, what their faults mean.

s3://BUCKET/metadata/parts.json      how many parts there are, fixed when the store is created
s3://BUCKET/metadata/part-NN         one database with one writer each
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import obstore
import orjson
from obstore.exceptions import AlreadyExistsError, BaseError
from slatedb import uniffi  # type: ignore[import-untyped]

from core import aws
from core.errors import CommitError, FencedError, MissingError, UnreachableError
from core.settings import Settings
from sinks import metadata_keys

__all__ = [
    "check_store",
    "create_store",
    "faults",
    "open_reader",
    "open_writer",
    "part_names",
    "store_url",
    "written_parts",
]

ROOT = "metadata"
PARTS_PATH = f"{ROOT}/parts.json"
CACHE_BYTES = 32 * 1024 * 1024
WRITER_RETRIES = 30
"""SlateDB's own attempts, each of them about two seconds of retries in its object store client. Whoever waits for
them waits no longer than `PKM_RETRY_SECONDS`."""

WRITER_OPTIONS = {
    # Memory: what is not yet in object storage, and one table of level 0.
    "max_unflushed_bytes": str(64 * 1024 * 1024),
    "l0_sst_size_bytes": str(16 * 1024 * 1024),
    # An epoch asks for its flush; the interval matters only to a flush that nobody asked for.
    "flush_interval": '"100ms"',
    # Idle databases should not cost a request a second: a second writer shows at the next write anyway.
    "manifest_poll_interval": '"10s"',
    # No cache on disk.
    "object_store_cache_options.root_folder": "null",
    # Even a small table gets its filter: most look-ups are for notes that are new.
    "min_filter_keys": "0",
    "object_store_max_retries": str(WRITER_RETRIES),
}


def store_url(settings: Settings, part: str | None = None) -> str:
    """Name the store, or one part of it, for a message."""
    return f"s3://{settings.bucket}/{ROOT}" + (f"/{part}" if part else "")


def create_store(settings: Settings) -> int:
    """Create the store with `settings.metadata_parts` parts unless it exists; returns the number it has.

    Safe to repeat and to race: the first one decides. Raises UnreachableError, and MissingError without a bucket.
    """
    body = orjson.dumps({"parts": settings.metadata_parts})
    with _object_faults(settings), contextlib.suppress(AlreadyExistsError):
        obstore.put(aws.object_store(settings), PARTS_PATH, body, mode="create")
    return len(part_names(settings))


def check_store(settings: Settings) -> None:
    """Check that the store exists. Raises what `part_names` raises."""
    part_names(settings)


def part_names(settings: Settings) -> list[str]:
    """Read the names of all parts; a later `PKM_METADATA_PARTS` does not change them.

    Raises MissingError when the store was never created, UnreachableError when it can't be read.
    """
    with _object_faults(settings):
        body = bytes(obstore.get(aws.object_store(settings), PARTS_PATH).bytes())
    return metadata_keys.part_names(int(orjson.loads(body)["parts"]))


def written_parts(settings: Settings) -> set[str]:
    """Name the parts that were ever opened for writing; only they can be read."""
    with _object_faults(settings):
        listing = obstore.list_with_delimiter(aws.object_store(settings), f"{ROOT}/")
    return {prefix.rstrip("/").rpartition("/")[2] for prefix in listing["common_prefixes"]}


async def open_writer(settings: Settings, part: str) -> uniffi.Db:
    """Open a part for writing; whoever had it open is fenced. Raises what `faults` says."""
    builder = uniffi.DbBuilder(f"{ROOT}/{part}", _object_store(settings))
    options = uniffi.Settings.default()
    for name, value in WRITER_OPTIONS.items():
        options.set(name, value)
    builder.with_settings(options)
    builder.with_db_cache(_memory_cache(CACHE_BYTES), 0)
    return await builder.build()


async def open_reader(
    settings: Settings, part: str, *, follow_milliseconds: int = 60_000, cache_bytes: int = CACHE_BYTES
) -> uniffi.DbReader:
    """Open a part for reading what is durable now, and after so long what is durable then.

    Writes nothing and fences nobody.
    """
    builder = uniffi.DbReaderBuilder(f"{ROOT}/{part}", _object_store(settings))
    builder.with_reader_mode(uniffi.ReaderMode.FOLLOW_LATEST())
    builder.with_options(
        uniffi.ReaderOptions(
            manifest_poll_interval_ms=follow_milliseconds,
            checkpoint_lifetime_ms=600_000,
            max_memtable_bytes=64 * 1024 * 1024,
            skip_wal_replay=False,
            object_store_max_retries=1,
        )
    )
    builder.with_db_cache(_memory_cache(cache_bytes), 0)
    return await builder.build()


def _memory_cache(size_bytes: int) -> uniffi.DbCache:
    return uniffi.DbCache.new_moka_cache(
        uniffi.MokaCacheOptions(max_capacity=size_bytes, time_to_live=None, time_to_idle=None)
    )


def _object_store(settings: Settings) -> uniffi.ObjectStore:
    # `from_url` would ignore the options and hang without credentials.
    builder = uniffi.ObjectStoreBuilder.from_env(uniffi.ObjectStoreType.S3)
    builder.with_config("bucket", settings.bucket)
    builder.with_config("timeout", f"{settings.request_seconds}s")
    builder.with_config("connect_timeout", f"{aws.CONNECT_SECONDS}s")
    options = aws.s3_options(settings)
    for name, value in options.items():
        builder.with_config(name, value)
    if options.get("endpoint", "").startswith("http://"):
        builder.with_config("allow_http", "true")
    return builder.build()


@contextlib.contextmanager
def faults(settings: Settings, part: str | None, doing: str) -> Iterator[None]:
    """Turn SlateDB's errors into ours.

    Raises FencedError when a newer writer has the part, UnreachableError when the object store failed all retries,
    CommitError for anything else.
    """
    url = store_url(settings, part)
    try:
        yield
    except TimeoutError as error:
        raise UnreachableError(f"{url} did not answer in time ({doing}): check endpoint and network") from error
    except uniffi.Error.Closed as error:
        if error.reason == uniffi.CloseReason.FENCED:
            raise FencedError(
                f"{url} was opened by a newer execution ({doing}): this one stops; run only one flow per store"
            ) from error
        raise UnreachableError(f"{url} closed itself ({doing}): {error.message}") from error
    except uniffi.Error.Unavailable as error:
        raise UnreachableError(f"{url} can't be reached ({doing}): {error.message}") from error
    except uniffi.Error as error:
        raise CommitError(f"{url} failed ({doing}): {error}") from error


@contextlib.contextmanager
def _object_faults(settings: Settings) -> Iterator[None]:
    url = f"s3://{settings.bucket}/{PARTS_PATH}"
    try:
        yield
    except FileNotFoundError as error:
        raise MissingError(f"{url} does not exist: the metadata store was never created, run `pkm init`") from error
    except AlreadyExistsError:
        raise
    except BaseError as error:
        raise UnreachableError(f"{url} can't be reached: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
