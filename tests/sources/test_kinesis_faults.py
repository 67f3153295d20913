"""The source behind a network and a service on a bad day: nothing is lost or doubled, and nobody is stormed."""

from __future__ import annotations

import time
from collections import Counter

import bytewax.operators as op
import pytest
from bytewax.dataflow import Dataflow
from bytewax.testing import TestingSink, run_main

from core import aws
from core.records import RawRecord
from core.settings import Settings
from faults.proxy import Fault, fault_proxy
from sources import kinesis

RECORDS = 1_000
SHARDS = 4
BAD_DAY = [
    Fault("throttle", service="kinesis", operation="GetRecords", share=0.30),
    Fault("throttle", service="kinesis", operation="GetShardIterator|ListShards|Describe", share=0.05),
    Fault("slow-down", service="kinesis", share=0.03),
    Fault("error-after", service="kinesis", share=0.03),
    Fault("drop", service="kinesis", share=0.03),
    Fault("lost-response", service="kinesis", share=0.03),
    Fault("broken-off", service="kinesis", share=0.03),
    Fault("cut-short", service="kinesis", share=0.03),
    Fault("expired", service="kinesis", operation="GetRecords", share=0.05),
]


@pytest.mark.timeout(180)
def test_a_bad_day_loses_and_doubles_nothing_and_is_met_with_patience(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinesis.create_stream(settings)
    client = aws.kinesis_client(settings)
    sent = [f"{number:04d}" for number in range(RECORDS)]
    for at in range(0, RECORDS, 500):
        entries = [{"Data": one.encode(), "PartitionKey": one} for one in sent[at : at + 500]]
        client.put_records(StreamName=settings.stream, Records=entries)
    # Small reads, so that there are many to be spoilt.
    monkeypatch.setattr("sources.kinesis_reading.FIRST_LIMIT", 25)
    monkeypatch.setattr("sources.kinesis_reading.MOST_RECORDS", 25)

    records: list[RawRecord] = []
    with fault_proxy(aws.endpoint("kinesis") or "") as proxy:
        proxy.rules = BAD_DAY
        monkeypatch.setenv("AWS_ENDPOINT_URL_KINESIS", proxy.url)
        flow = Dataflow("faults")
        inp = kinesis.input("inp", flow, settings=settings.model_copy(update={"until_caught_up": True}))
        op.output("out", inp.records, TestingSink(records))
        began = time.monotonic()
        run_main(flow)
        seconds = time.monotonic() - began

    counts = Counter(record.data.decode() for record in records)
    assert sorted(counts) == sent
    assert set(counts.values()) == {1}
    for shard_id in {record.position.shard_id for record in records}:
        numbers = [one.position.sequence_number for one in records if one.position.shard_id == shard_id]
        assert numbers == sorted(numbers)
    assert {"throttle", "slow-down", "drop", "broken-off", "cut-short", "expired"} <= set(proxy.faults)

    calls = proxy.faults["kinesis"] + sum(proxy.passed.values())
    useful = RECORDS / 25
    # Nearly half of the calls meet a fault; an iterator that has expired, or was refused, takes a call more.
    counted = f"{calls} calls for {useful:.0f} reads in {seconds:.1f} s: {dict(proxy.passed)}, {dict(proxy.faults)}"
    print(counted)
    assert calls < 5 * useful, counted
    assert calls < 5 * SHARDS * 2 * seconds + 20, "five reads, and five iterators, a second and shard"
