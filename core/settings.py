"""The one place that reads the environment: `PKM_*` settings, checked and typed.

AWS credentials, region and endpoints keep their usual `AWS_*` names; `core.aws` reads them through boto3.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from dotenv import dotenv_values
from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from core.errors import SettingsError
from core.records import Position

__all__ = ["Settings", "StartPosition", "load_settings", "parse_start"]

PREFIX = "PKM_"
ENV_FILE = ".env"
StartPosition = Literal["trim-horizon", "latest"] | datetime | Position


class Settings(BaseSettings):
    """All settings of the product, each with a working default. Environment first, then `.env`."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=ENV_FILE, extra="ignore", frozen=True, env_ignore_empty=True
    )

    stream: str = Field("pkm-ingestion", description="Kinesis stream")
    bucket: str = Field("pkm-lakehouse", description="S3 bucket of content, tables, vectors, metadata, snapshots")
    region: str = Field("us-east-1", description="AWS region, unless AWS_REGION or AWS_DEFAULT_REGION names one")
    start: str = Field(
        "trim-horizon",
        description="where a flow without a snapshot starts: trim-horizon, latest, timestamp:ISO8601,"
        " sequence:SHARD:NUMBER",
    )
    force_start: bool = Field(False, description="leave the snapshot that there is, and start at PKM_START")
    until_caught_up: bool = Field(False, description="stop when every shard has been read to its end")
    on_data_loss: Literal["fail", "warn"] = Field("fail", description="what to do when the stream lost records")
    shards: Annotated[int, Field(ge=1, le=10_000)] = Field(
        4, description="shards of a stream that `pkm init` creates"
    )
    source_partitions: Annotated[int, Field(ge=1, le=1024)] = Field(
        4, description="source partitions that share the shards; fixed for the life of a flow's snapshots"
    )
    batch_records: Annotated[int, Field(ge=1, le=10_000)] = Field(
        20,
        description="most records that a source partition hands on at a time; fewer at first and when steps are slow",
    )

    max_object_bytes: Annotated[int, Field(ge=1)] = Field(16 * 1024 * 1024, description="larger objects are refused")
    fetch_concurrency: Annotated[int, Field(ge=1, le=1024)] = Field(
        32, description="S3 requests in flight of a process"
    )
    parse_seconds: Annotated[float, Field(gt=0)] = Field(5.0, description="time a document's parser may take")

    enrich: Literal["embedded", "cloud", "none"] = Field("embedded", description="model profile")
    embedding_model: str | None = Field(None, description="overrides the profile's embedding model")
    entity_model: str | None = Field(None, description="overrides the profile's entity model")
    concepts: Literal["phrases", "keybert"] = Field(
        "phrases", description="candidates for concepts: phrases that a person would write, or KeyBERT's n-grams"
    )
    enrich_characters: Annotated[int, Field(ge=1)] = Field(
        1024 * 1024, description="characters of a note that models read; the rest is stored without vectors"
    )
    reuse_results: bool = Field(
        True, description="keep what enrichment made of a text, and take it when the same text comes again"
    )
    processing_version: str = Field("1", min_length=1, description="written with every row")
    threads: Annotated[int, Field(ge=1)] | None = Field(
        None, description="CPU threads of a forward pass; default all cores divided by the workers of the process"
    )

    window_seconds: Annotated[int, Field(ge=1)] = Field(300, description="length of the tumbling windows")
    lateness_seconds: Annotated[int, Field(ge=0)] = Field(60, description="how long a window waits for late events")
    dedupe_hours: Annotated[int, Field(ge=1)] = Field(24, description="how long event ids are remembered")

    catalog: Literal["glue", "rest", "sql"] = Field("glue", description="kind of Iceberg catalog")
    catalog_uri: str | None = Field(None, description="address of a rest or sql catalog")
    warehouse: str | None = Field(None, description="default s3://BUCKET/warehouse")
    metadata_parts: Annotated[int, Field(ge=1, le=256)] = Field(
        4, description="SlateDB databases; fixed when the store is created"
    )

    snapshot_seconds: Annotated[int, Field(ge=1)] = Field(
        5, description="length of an epoch and time between snapshots"
    )
    snapshot_key: SecretStr | None = Field(None, description="signs recovery snapshots (HMAC-SHA256)")
    snapshot_retention: Annotated[int, Field(ge=1)] = Field(
        20, description="recovery snapshots kept, besides savepoints"
    )
    snapshot_retention_hours: Annotated[int, Field(ge=1)] = Field(
        168, description="older recovery snapshots are not kept, but for the newest and savepoints"
    )
    accept_changed_steps: bool = Field(
        False, description="go on from a snapshot of a flow with other steps: theirs is lost, new ones start empty"
    )
    recovery_dir: Path = Field(
        Path("/dev/shm/pkm/recovery"),  # noqa: S108 - memory is the point, and the folder is private
        description="in memory; holds the running flow's state",
    )
    request_seconds: Annotated[float, Field(gt=0)] = Field(30.0, description="time a request to AWS may take")
    retry_seconds: Annotated[float, Field(gt=0)] = Field(
        60.0, description="how long a fault of S3 or the catalog is retried before the flow stops"
    )
    failure_rate_limit: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="the flow stops when a larger part of the last records failed; 1 never stops"
    )
    failure_rate_window: Annotated[int, Field(ge=10, le=1_000_000)] = Field(
        1000, description="records that the failure rate is taken over"
    )
    memory_dir_bytes: Annotated[int, Field(ge=1)] | None = Field(
        None, description="most that recovery state and fetched models may take in memory; default all of /dev/shm"
    )
    api_token: SecretStr | None = Field(None, description="bearer token of `pkm ingest api`")
    api_page_bytes: Annotated[int, Field(ge=1)] = Field(
        32 * 1024 * 1024, description="largest page that an API may answer, unpacked"
    )
    api_patience_seconds: Annotated[float, Field(ge=0)] = Field(
        900.0, description="how long an API may ask to wait for one page"
    )
    serve_tokens: SecretStr | None = Field(
        None, description="bearer tokens of `pkm ingest serve`: NAME:TOKEN,NAME:TOKEN; a name may have several"
    )
    serve_requests_per_second: Annotated[float, Field(gt=0)] = Field(
        50.0, description="requests a second that one name may make of `pkm ingest serve`, in the long run"
    )
    serve_burst: Annotated[int, Field(ge=1)] = Field(500, description="requests that one name may make at once")
    serve_notes: Annotated[int, Field(ge=1, le=1024)] = Field(
        64, description="notes that `pkm ingest serve` takes in at once; others wait"
    )
    serve_uploads: Annotated[int, Field(ge=1, le=1024)] = Field(
        16, description="files that it takes in at once, each with up to 24 MiB of memory; others wait"
    )
    web_user_agent: Annotated[str, Field(pattern=r"^[A-Za-z_-]{1,64}$")] = Field(
        "pkm-lakehouse", description="name that web servers see, and that robots.txt files call the crawler by"
    )
    web_contact: Annotated[str, Field(pattern=r"^[!-'*-~]{1,200}$")] | None = Field(
        None, description="address, of the web or of mail, that web servers see beside the name"
    )
    web_pace_seconds: Annotated[float, Field(ge=0)] = Field(
        1.0, description="least time between two requests to a web host; robots.txt may ask for more"
    )
    web_page_seconds: Annotated[float, Field(gt=0)] = Field(
        30.0, description="time that a web page may take, redirects included"
    )
    git_pack_bytes: Annotated[int, Field(ge=1)] = Field(
        256 * 1024 * 1024, description="largest pack that a git server may send at a time; held in memory"
    )
    git_seconds: Annotated[float, Field(gt=0)] = Field(
        600.0, description="time that one fetch from a git server may take"
    )
    git_files: Annotated[int, Field(ge=1)] = Field(
        200_000, description="files and folders of a repository that are looked at; larger ones are refused"
    )
    github_url: str = Field("https://api.github.com", description="REST API of `pkm ingest git github:OWNER/NAME`")
    github_token: SecretStr | None = Field(None, description="token for that API")
    allow_private_addresses: bool = Field(False, description="lets producers reach private hosts")
    log_format: Literal["console", "json"] = Field("console", description="how logs are written")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")

    @field_validator("start")
    @classmethod
    def _start_is_a_position(cls, value: str) -> str:
        parse_start(value)
        return value

    @model_validator(mode="after")
    def _catalog_has_an_address(self) -> Settings:
        if self.catalog != "glue" and not self.catalog_uri:
            raise ValueError(f"PKM_CATALOG={self.catalog} needs PKM_CATALOG_URI, the catalog's address")
        return self

    @property
    def start_position(self) -> StartPosition:
        """Where a flow without a snapshot starts."""
        return parse_start(self.start)

    @property
    def warehouse_uri(self) -> str:
        """Root of the Iceberg tables."""
        return (self.warehouse or f"s3://{self.bucket}/warehouse").rstrip("/")

    @property
    def vectors_uri(self) -> str:
        """The Lance dataset of chunks."""
        return f"s3://{self.bucket}/vectors/notes.lance"

    @property
    def epoch(self) -> timedelta:
        """Length of an epoch: the unit of commit."""
        return timedelta(seconds=self.snapshot_seconds)

    @property
    def request_timeout(self) -> timedelta:
        """Time a request to AWS may take."""
        return timedelta(seconds=self.request_seconds)

    @property
    def retry_timeout(self) -> timedelta:
        """How long a fault of S3 or the catalog is retried before the flow stops."""
        return timedelta(seconds=self.retry_seconds)

    @property
    def window_length(self) -> timedelta:
        """Length of the tumbling windows."""
        return timedelta(seconds=self.window_seconds)

    @property
    def lateness(self) -> timedelta:
        """How long a window waits for late events."""
        return timedelta(seconds=self.lateness_seconds)

    @property
    def dedupe_retention(self) -> timedelta:
        """How long event ids are remembered."""
        return timedelta(hours=self.dedupe_hours)


def parse_start(text: str) -> StartPosition:
    """Read `trim-horizon`, `latest`, `timestamp:ISO8601` (UTC unless it has an offset) or `sequence:SHARD:NUMBER`.

    A sequence number is a place in one shard, and included; other shards have nothing to do with it.
    Raises ValueError for anything else.
    """
    if text == "trim-horizon":
        return "trim-horizon"
    if text == "latest":
        return "latest"
    kind, _, value = text.partition(":")
    if kind == "timestamp":
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError(f'"{value}" is not an ISO 8601 time, such as 2026-11-23T08:00:00Z') from None
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    if kind == "sequence":
        shard_id, _, number = value.rpartition(":")
        if not shard_id or not (number.isascii() and number.isdecimal()):
            raise ValueError(f'"{value}" is not a shard and a sequence number, such as shardId-000000000000:4966')
        return Position(shard_id, int(number))
    raise ValueError(
        f'"{text}" is not a position: use trim-horizon, latest, timestamp:ISO8601 or sequence:SHARD:NUMBER'
    )


@lru_cache(maxsize=1)
def load_settings() -> Settings:
    """Read and check the settings once per process: the environment first, then `.env` in the working directory.

    Raises SettingsError that names every unknown or unusable setting in one line.
    """
    problems = _unknown(os.environ, "")
    if Path(ENV_FILE).is_file():
        problems += _unknown(dotenv_values(ENV_FILE, interpolate=False), f" (in {ENV_FILE})")
    try:
        settings = Settings()
    except ValidationError as error:
        problems += [_said(detail["loc"], detail["input"], detail["msg"]) for detail in error.errors()]
        settings = None
    if problems or settings is None:
        raise SettingsError("; ".join(problems) + "; docs/settings.md lists all")
    return settings


def _said(place: tuple[int | str, ...], value: object, message: str) -> str:
    message = message.removeprefix("Value error, ")
    # A problem of several settings has no place, and all of them as its value, secrets too.
    name = "_".join(str(part) for part in place).upper()
    return f"{PREFIX}{name}={value!r}: {message}" if name else message


def _unknown(names: Iterable[str], place: str) -> list[str]:
    """Say what is wrong with each of `names` that has our prefix and is no setting; others are not our business."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    problems = []
    for name in sorted(names):
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            nearest = get_close_matches(name.upper(), known, n=1)
            meant = f", did you mean {nearest[0]}?" if nearest else ""
            problems.append(f"{name}{place} is not a setting{meant}")
    return problems
