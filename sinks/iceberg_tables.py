"""The Iceberg tables: schema, partitions and key of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC, PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.transforms import IdentityTransform
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DoubleType,
    FloatType,
    IcebergType,
    IntegerType,
    ListType,
    LongType,
    MapType,
    NestedField,
    StringType,
    StructType,
    TimestamptzType,
)

from sinks.iceberg_rows import (
    Change,
    bronze_note_change,
    failure_change,
    metrics_change,
    silver_note_change,
)

__all__ = [
    "BRONZE_FAILURES",
    "BRONZE_NOTES",
    "GOLD_CONCEPT_TRENDS",
    "GOLD_DAILY_ACTIVITY",
    "GOLD_ENTITY_LINKS",
    "GOLD_ENTITY_MENTIONS",
    "SILVER_METRICS",
    "SILVER_NOTES",
    "TABLES",
    "TableSpec",
]

_ENTITY = StructType(
    NestedField(111, "text", StringType(), required=True),
    NestedField(112, "type", StringType(), required=True),
    NestedField(113, "score", FloatType(), required=True),
    NestedField(114, "start", IntegerType(), required=True),
    NestedField(115, "end", IntegerType(), required=True),
)
_CONCEPT = StructType(
    NestedField(121, "text", StringType(), required=True),
    NestedField(122, "score", FloatType(), required=True),
)
_STRINGS = ListType(101, StringType(), element_required=True)
_STRING_MAP = MapType(102, StringType(), 103, StringType(), value_required=True)
_ENTITIES = ListType(104, _ENTITY, element_required=True)
_CONCEPTS = ListType(105, _CONCEPT, element_required=True)


@dataclass(frozen=True, slots=True)
class TableSpec:
    """A table as `pkm init` creates it. Without key columns it is only appended to."""

    identifier: str
    schema: Schema
    partition_spec: PartitionSpec = UNPARTITIONED_PARTITION_SPEC
    key_columns: tuple[str, ...] = ()
    change: Callable[[Any, datetime, str], Change] | None = None
    """Turns (record, processing time, processing version) into a change; None for tables without a stream."""


def _schema(columns: Sequence[tuple[str, IcebergType, bool]], *, keys: tuple[str, ...] = ()) -> Schema:
    fields = [
        NestedField(number, name, kind, required=required)
        for number, (name, kind, required) in enumerate(columns, start=1)
    ]
    return Schema(*fields, identifier_field_ids=[field.field_id for field in fields if field.name in keys])


_ORIGIN_COLUMNS = [
    ("arrival_time", TimestamptzType(), True),
    ("shard_id", StringType(), True),
    ("sequence_number", StringType(), True),
    ("subsequence_number", LongType(), True),
]

_BRONZE_NOTES_SCHEMA = _schema(
    [
        ("event_id", StringType(), True),
        ("note_id", StringType(), True),
        ("source_type", StringType(), True),
        ("bucket", StringType(), False),
        ("s3_key", StringType(), False),
        ("content_type", StringType(), False),
        ("content_size", LongType(), True),
        ("metadata", _STRING_MAP, True),
        ("timestamp", TimestamptzType(), True),
        *_ORIGIN_COLUMNS,
        ("deleted", BooleanType(), True),
        ("content", StringType(), False),
        ("word_count", LongType(), True),
        ("char_count", LongType(), True),
        ("processing_time", TimestamptzType(), True),
        ("processing_date", DateType(), True),
        ("processing_version", StringType(), True),
    ]
)

BRONZE_NOTES = TableSpec(
    "bronze.notes",
    _BRONZE_NOTES_SCHEMA,
    partition_spec=PartitionSpec(
        PartitionField(
            source_id=_BRONZE_NOTES_SCHEMA.find_field("processing_date").field_id,
            field_id=1000,
            transform=IdentityTransform(),
            name="processing_date",
        )
    ),
    change=bronze_note_change,
)

BRONZE_FAILURES = TableSpec(
    "bronze.failures",
    _schema(
        [
            ("event_id", StringType(), False),
            ("step", StringType(), True),
            ("error", StringType(), True),
            ("message", StringType(), True),
            *_ORIGIN_COLUMNS,
            ("s3_key", StringType(), False),
            ("payload", BinaryType(), True),
            ("failed_at", TimestamptzType(), True),
        ]
    ),
    change=failure_change,
)

SILVER_NOTES = TableSpec(
    "silver.notes",
    _schema(
        [
            ("note_id", StringType(), True),
            ("event_id", StringType(), True),
            ("source_type", StringType(), True),
            ("title", StringType(), True),
            ("text", StringType(), True),
            ("frontmatter", StringType(), True),
            ("links", _STRINGS, True),
            ("headers", ListType(106, StringType(), element_required=True), True),
            ("entities", _ENTITIES, True),
            ("concepts", _CONCEPTS, True),
            ("language", StringType(), True),
            ("chunk_count", IntegerType(), True),
            ("word_count", LongType(), True),
            *_ORIGIN_COLUMNS,
            ("processed_at", TimestamptzType(), True),
            ("processing_version", StringType(), True),
        ],
        keys=("note_id",),
    ),
    key_columns=("note_id",),
    change=silver_note_change,
)

SILVER_METRICS = TableSpec(
    "silver.metrics",
    _schema(
        [
            ("window_start", TimestamptzType(), True),
            ("window_end", TimestamptzType(), True),
            ("source_type", StringType(), True),
            ("count", LongType(), True),
            ("avg_words", DoubleType(), True),
            ("event_ids", _STRINGS, True),
        ],
        keys=("window_start", "source_type"),
    ),
    key_columns=("window_start", "source_type"),
    change=metrics_change,
)


def _gold(name: str, keys: Sequence[str], measures: Sequence[tuple[str, IcebergType]]) -> TableSpec:
    columns: list[tuple[str, IcebergType, bool]] = [("day", DateType(), True)]
    columns += [(key, StringType(), True) for key in keys]
    columns += [(measure, kind, True) for measure, kind in measures]
    key_columns = ("day", *keys)
    return TableSpec(f"gold.{name}", _schema(columns, keys=key_columns), key_columns=key_columns)


GOLD_CONCEPT_TRENDS = _gold("concept_trends", ["concept"], [("note_count", LongType()), ("avg_score", DoubleType())])
GOLD_ENTITY_MENTIONS = _gold(
    "entity_mentions",
    ["entity", "entity_type"],
    [("note_count", LongType()), ("mention_count", LongType()), ("avg_score", DoubleType())],
)
GOLD_ENTITY_LINKS = _gold(
    "entity_links",
    ["source_entity", "source_entity_type", "target_entity", "target_entity_type"],
    [("note_count", LongType()), ("avg_score", DoubleType())],
)
GOLD_DAILY_ACTIVITY = _gold(
    "daily_activity",
    ["source_type"],
    [("event_count", LongType()), ("deletion_count", LongType()), ("avg_words", DoubleType())],
)

TABLES = (
    BRONZE_NOTES,
    BRONZE_FAILURES,
    SILVER_NOTES,
    SILVER_METRICS,
    GOLD_CONCEPT_TRENDS,
    GOLD_ENTITY_MENTIONS,
    GOLD_ENTITY_LINKS,
    GOLD_DAILY_ACTIVITY,
)
