"""Creates what the flow needs: bucket, stream, tables and stores. Safe to repeat."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

from botocore.exceptions import BotoCoreError, ClientError

from core import aws
from core.errors import UnreachableError, reason
from core.settings import Settings
from models.embedder import load_embedder
from models.registry import profile
from sinks import iceberg_catalog, lance, slatedb
from sources import kinesis

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

__all__ = ["initialise"]


def initialise(settings: Settings) -> dict[str, str]:
    """Create whatever is missing; returns what now exists, by kind.

    Raises UnreachableError when an endpoint does not answer, ModelError when the embedding model, whose dimension the
    vector store needs, can't be loaded.
    """
    model = profile(settings).embedding
    embedder = load_embedder(model, threads=settings.threads) if model else None
    _create_bucket(settings)
    kinesis.create_stream(settings)
    iceberg_catalog.create_tables(settings)
    slatedb.create_store(settings)
    ready = {
        "stream": settings.stream,
        "bucket": settings.bucket,
        "catalog": f"{settings.catalog}, {settings.warehouse_uri}",
        "metadata": f"s3://{settings.bucket}/metadata",
    }
    if embedder:
        lance.create_dataset(settings, dimension=embedder.dimension)
        ready["vectors"] = f"{settings.vectors_uri}, {embedder.dimension} dimensions"
    return ready


def _create_bucket(settings: Settings) -> None:
    client = aws.s3_client(settings)
    region = aws.region(settings)
    try:
        # Looked for first: where the bucket exists, we need not be allowed to make one.
        if _bucket_exists(client, settings.bucket):
            return
        if region == "us-east-1":
            # This region alone refuses to be named as a location.
            client.create_bucket(Bucket=settings.bucket)
        else:
            client.create_bucket(Bucket=settings.bucket, CreateBucketConfiguration={"LocationConstraint": region})  # type: ignore[typeddict-item]
    except client.exceptions.BucketAlreadyOwnedByYou:
        # Another `pkm init` was faster.
        return
    except (BotoCoreError, ClientError) as error:
        where = aws.endpoint("s3") or f"AWS in {region}"
        raise UnreachableError(
            f'bucket "{settings.bucket}" can\'t be used or created at {where}: {reason(error)}; set PKM_BUCKET to'
            " one that is yours, or check credentials and endpoint"
        ) from error


def _bucket_exists(client: S3Client, bucket: str) -> bool:
    try:
        client.head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] == HTTPStatus.NOT_FOUND:
            return False
        raise
    return True
