"""Creates what the flow needs: bucket, stream, tables and stores. Safe to repeat."""

from __future__ import annotations

from botocore.exceptions import BotoCoreError, ClientError

from core import aws
from core.errors import UnreachableError
from core.settings import Settings
from models.embedder import load_embedder
from models.registry import profile
from sinks import iceberg_catalog, lance, slatedb
from sources import kinesis

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
        if region == "us-east-1":
            # This region alone refuses to be named as a location.
            client.create_bucket(Bucket=settings.bucket)
        else:
            client.create_bucket(Bucket=settings.bucket, CreateBucketConfiguration={"LocationConstraint": region})  # type: ignore[typeddict-item]
    except (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
        client.head_bucket(Bucket=settings.bucket)
    except (BotoCoreError, ClientError) as error:
        where = aws.endpoint("s3") or f"AWS in {region}"
        raise UnreachableError(f'bucket "{settings.bucket}" can\'t be created at {where}: {error}') from error
