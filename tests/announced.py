"""What a stream holds, for the tests of whatever announces; and a stream that refuses records."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson

from core.settings import Settings

__all__ = ["Refusing", "records"]


def records(client: Any, settings: Settings) -> list[dict[str, Any]]:
    """Read the stream's only shard from its beginning; each record with its partition key."""
    shard = client.list_shards(StreamName=settings.stream)["Shards"][0]["ShardId"]
    iterator = client.get_shard_iterator(StreamName=settings.stream, ShardId=shard, ShardIteratorType="TRIM_HORIZON")[
        "ShardIterator"
    ]
    found: list[dict[str, Any]] = []
    while True:
        answer = client.get_records(ShardIterator=iterator, Limit=1000)
        found += [{**orjson.loads(r["Data"]), "partition_key": r["PartitionKey"]} for r in answer["Records"]]
        iterator = answer["NextShardIterator"]
        if not answer["Records"]:
            return found


class Refusing:
    """A client that refuses chosen entries of each call, as a stream does that is over its limit."""

    def __init__(self, client: Any, refused: Iterator[set[int]]) -> None:
        self.client, self.refused, self.calls = client, refused, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.client, name)

    def put_records(self, *, StreamName: str, Records: list[Any]) -> Any:  # noqa: N803 - boto's names
        self.calls.append([record["PartitionKey"] for record in Records])
        refused = next(self.refused, set())
        taken = [record for index, record in enumerate(Records) if index not in refused]
        answers = iter(self.client.put_records(StreamName=StreamName, Records=taken)["Records"] if taken else [])
        error = {"ErrorCode": "ProvisionedThroughputExceededException", "ErrorMessage": "slow down"}
        return {"Records": [error if index in refused else next(answers) for index in range(len(Records))]}
