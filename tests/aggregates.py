"""Records as the Kinesis Producer Library aggregates them, written by Amazon's own Python module."""

from __future__ import annotations

from collections.abc import Iterable

from aws_kinesis_agg.aggregator import RecordAggregator

__all__ = ["aggregate_of"]


def aggregate_of(user_records: Iterable[tuple[str, int | None, bytes]]) -> bytes:
    """Pack (partition key, explicit hash key, data) into one record."""
    aggregator = RecordAggregator()
    for partition_key, explicit_hash_key, data in user_records:
        key = None if explicit_hash_key is None else str(explicit_hash_key)
        full = aggregator.add_user_record(partition_key, data, key)
        assert full is None, "more than fits into a record"
    return bytes(aggregator.clear_and_get().get_contents()[2])
