"""Turns settings and the usual `AWS_*` variables into options for every client of AWS that we use.

boto3 (Kinesis, control calls), obstore (objects), pyiceberg, Lance and SlateDB each spell endpoint, region and
credentials differently; this is the one place that knows how.
"""

from __future__ import annotations

import os
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from obstore.store import S3Store

from core.errors import SettingsError
from core.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_kinesis import KinesisClient
    from mypy_boto3_s3 import S3Client

__all__ = [
    "catalog_properties",
    "client_config",
    "endpoint",
    "kinesis_client",
    "lance_storage_options",
    "object_store",
    "region",
    "s3_client",
    "s3_options",
]

CONNECT_SECONDS = 5
# Of calls without a stream that could wait for them: a wrong endpoint is told soon.
ATTEMPTS = 8
# Time ends retries, not their number: the clients' random back-off may spend ten of them within two seconds.
STORE_RETRIES = 1_000


def region(settings: Settings) -> str:
    """Name the AWS region: the SDK's variables first, then the setting."""
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or settings.region


def endpoint(service: str) -> str | None:
    """Return the endpoint that the environment sets for `service` (`s3`, `kinesis`, `glue`), if any.

    Raises SettingsError when it is not an address.
    """
    for name in (f"AWS_ENDPOINT_URL_{service.upper()}", "AWS_ENDPOINT_URL"):
        url = os.environ.get(name)
        if url:
            if not _is_address(url):
                raise SettingsError(f'{name}="{url}" is not an address, such as http://127.0.0.1:5000')
            return url
    return None


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        # Reading the port checks it.
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def kinesis_client(settings: Settings, *, attempts: int = ATTEMPTS) -> KinesisClient:
    """Return a Kinesis client; safe to share between threads."""
    return boto3.client(
        "kinesis",
        region_name=region(settings),
        endpoint_url=endpoint("kinesis"),
        config=client_config(settings, attempts=attempts),
    )


def s3_client(settings: Settings, *, attempts: int = ATTEMPTS, connections: int = 10) -> S3Client:
    """Return an S3 client for control calls such as creating the bucket, listing, copying, and uploads in parts.

    Whole objects go through `object_store`. Safe to share between threads; `connections` are kept open.
    """
    return boto3.client(
        "s3",
        region_name=region(settings),
        endpoint_url=endpoint("s3"),
        config=client_config(settings, attempts=attempts, connections=connections),
    )


def client_config(settings: Settings, *, attempts: int, connections: int = 10) -> Config:
    """Time-outs, attempts and connections of a boto3 client."""
    return Config(
        connect_timeout=CONNECT_SECONDS,
        read_timeout=settings.request_seconds,
        retries={"mode": "standard", "total_max_attempts": attempts},
        max_pool_connections=connections,
    )


def object_store(settings: Settings, *, bucket: str | None = None, prefix: str | None = None) -> S3Store:
    """Return an obstore client of `bucket` (default: the product's own); retries faults with jittered back-off.

    What asks for the same gets the same client, with its open connections: making one takes 6 ms of processor time.
    Threads may share it.
    """
    options = tuple(sorted(s3_options(settings).items()))
    return _object_store(
        bucket or settings.bucket, prefix, options, settings.request_timeout, settings.retry_timeout, _plain_http()
    )


@lru_cache(maxsize=16)
def _object_store(
    bucket: str,
    prefix: str | None,
    options: tuple[tuple[str, str], ...],
    request_timeout: timedelta,
    retry_timeout: timedelta,
    plain_http: bool,
) -> S3Store:
    return S3Store(
        bucket,
        prefix=prefix,
        config=dict(options),  # type: ignore[arg-type]
        client_options={
            "timeout": request_timeout,
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "allow_http": plain_http,
        },
        retry_config={
            "max_retries": STORE_RETRIES,
            "retry_timeout": retry_timeout,
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=5),
                "base": 2,
            },
        },
    )


def s3_options(settings: Settings) -> dict[str, str]:
    """Options in the spelling of the Rust object store (obstore, SlateDB).

    Credentials appear only when the environment has static ones; otherwise the client's own chain (web identity,
    container, instance) finds and refreshes them.
    """
    options = {"region": region(settings)}
    url = endpoint("s3")
    if url:
        options["endpoint"] = url
    for name in ("access_key_id", "secret_access_key", "session_token"):
        value = os.environ.get(f"AWS_{name.upper()}")
        if value:
            options[name] = value
    return options


def lance_storage_options(settings: Settings) -> dict[str, str]:
    """Options for `lance.dataset(…, storage_options=…)`."""
    options = {
        **{f"aws_{name}": value for name, value in s3_options(settings).items()},
        "timeout": f"{settings.request_seconds}s",
        "connect_timeout": f"{CONNECT_SECONDS}s",
        "client_max_retries": str(ATTEMPTS),
        # Lance itself lists versions up to six times, and our sink retries what it does.
        "client_retry_timeout": str(max(1, round(settings.retry_seconds / 6))),
    }
    if _plain_http():
        options["allow_http"] = "true"
    return options


def catalog_properties(settings: Settings) -> dict[str, str]:
    """Properties for `pyiceberg.catalog.load_catalog` of the chosen kind."""
    properties = {
        "type": settings.catalog,
        "warehouse": settings.warehouse_uri,
        "s3.region": region(settings),
        "client.region": region(settings),
        "s3.connect-timeout": str(CONNECT_SECONDS),
        "s3.request-timeout": str(settings.request_seconds),
    }
    if settings.catalog_uri:
        properties["uri"] = settings.catalog_uri
    s3_url, glue_url = endpoint("s3"), endpoint("glue")
    if s3_url:
        properties["s3.endpoint"] = s3_url
    if settings.catalog == "glue":
        properties["glue.region"] = region(settings)
        if glue_url:
            properties["glue.endpoint"] = glue_url
    for ours, theirs in (
        ("AWS_ACCESS_KEY_ID", "access-key-id"),
        ("AWS_SECRET_ACCESS_KEY", "secret-access-key"),
        ("AWS_SESSION_TOKEN", "session-token"),
    ):
        value = os.environ.get(ours)
        if value:
            properties[f"client.{theirs}"] = value
            properties[f"s3.{theirs}"] = value
    return properties


def _plain_http() -> bool:
    return (endpoint("s3") or "").startswith("http://")
