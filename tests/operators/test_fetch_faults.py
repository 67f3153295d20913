"""Proves that faults of S3 that pass are retried, and that those that stay stop the flow."""

from __future__ import annotations

import threading

import pytest

from core.errors import UnreachableError
from core.records import FetchedEvent
from core.settings import Settings
from fetching import BODY, event, failure_of, loopback_s3, opened


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("answers", [["503", "503", "whole"], ["500", "whole"], ["broken", "broken", "whole"]])
def test_a_fault_that_passes_is_not_seen(settings: Settings, answers: list[str]) -> None:
    one = event("a", bucket=settings.bucket)
    with loopback_s3(answers) as (store, script), opened(settings, store) as made:
        assert made.fetch([one]) == [FetchedEvent(one, BODY)]
    assert script.requests == len(answers)


@pytest.mark.usefixtures("quick_retries")
@pytest.mark.parametrize("answer", ["503", "broken", "403", "400"])
def test_a_fault_that_stays_stops_the_flow_and_names_the_object(settings: Settings, answer: str) -> None:
    one = event("raw/a.md", bucket=settings.bucket)
    with (
        loopback_s3([answer]) as (store, _),
        opened(settings, store) as made,
        pytest.raises(UnreachableError, match=rf"s3://{settings.bucket}/raw/a\.md"),
    ):
        made.fetch([one] * 20)


def test_a_server_that_is_gone_stops_the_flow(settings: Settings) -> None:
    with loopback_s3(["whole"]) as (store, _):
        pass
    with opened(settings, store) as made, pytest.raises(UnreachableError, match="after all retries"):
        made.fetch([event("a", bucket=settings.bucket)])


def test_the_size_is_judged_before_the_body_is_read(settings: Settings) -> None:
    # The server promises a gigabyte and sends a kilobyte: reading the body would fail.
    with loopback_s3(["huge"]) as (store, script):
        found = failure_of(settings, event("a", bucket=settings.bucket), store=store)
    assert found.error == "TooLarge"
    assert script.requests == 1


def test_many_requests_are_in_flight_but_no_more_than_allowed(settings: Settings) -> None:
    with loopback_s3(["whole"]) as (store, script), opened(settings, store, concurrency=4) as made:
        # Nobody is answered until four are there; a fifth may not come before.
        script.gate = threading.Barrier(4, timeout=20).wait
        outcomes = made.fetch([event(str(number), bucket=settings.bucket) for number in range(12)])
    assert all(isinstance(outcome, FetchedEvent) for outcome in outcomes)
    assert script.most_in_flight == 4
