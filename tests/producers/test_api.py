"""JSON APIs: page by page, obedient, within bounds, and on from where the last run ended."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from pydantic import SecretStr

from announced import Refusing, records
from core import aws
from core.errors import ForbiddenAddressError, SettingsError, UnreachableError
from core.settings import Settings
from json_api import Answer, Api, by_link, note, page_of, serving_api
from producers import api
from producers.api import ApiSource, Polled, poll


@pytest.fixture
def served() -> Iterator[Api]:
    with serving_api() as found:
        yield found


@pytest.fixture
def private(settings: Settings) -> Settings:
    return settings.model_copy(update={"allow_private_addresses": True, "retry_seconds": 2.0})


def run(url: str, settings: Settings, **options: Any) -> Polled:
    names = ("max_pages", "from_start", "on_left_alone", "pause")
    how = {"on_left_alone": lambda *_: None, "pause": lambda _: None}
    how |= {name: options.pop(name) for name in names if name in options}
    source = ApiSource(url=url, **{"items": "$.data[*]", "id": "$.id", **options})
    return poll(source, settings=settings, **how)  # type: ignore[arg-type]


def ids(kinesis: Any, settings: Settings) -> list[str]:
    return [record["metadata"]["id"] for record in records(kinesis, settings)]


def by_address(_path: str, parameters: dict[str, str]) -> Answer:
    number = int(parameters.get("page", "1"))
    return (
        200,
        {},
        page_of([note(number * 2 - 1), note(number * 2)], next=f"?page={number + 1}" if number < 3 else None),
    )


def by_token(_path: str, parameters: dict[str, str]) -> Answer:
    number = int(parameters.get("after", "t1")[1:])
    return 200, {}, page_of([note(number * 2 - 1), note(number * 2)], next=f"t{number + 1}" if number < 3 else "")


def by_number(_path: str, parameters: dict[str, str]) -> Answer:
    number = int(parameters["page"])
    return 200, {}, page_of([note(number * 2 - 1), note(number * 2)] if number <= 3 else [])


@pytest.mark.parametrize(
    ("answer", "options"),
    [
        (by_link, {}),
        (by_address, {"next": "$.next"}),
        (by_token, {"next": "$.next", "next_parameter": "after"}),
        (by_number, {"page_parameter": "page"}),
    ],
)
def test_every_way_to_page_gives_all_items_and_a_rerun_no_new_object(
    private: Settings, kinesis: Any, served: Api, answer: Any, options: Any
) -> None:
    served.answer = answer
    done = run(f"{served.url}/items?limit=2", private, content="$.text", content_type="text/markdown", **options)
    assert (done.announced, done.uploaded, done.complete) == (6, 6, True)
    found = records(kinesis, private)
    assert [record["metadata"]["id"] for record in found] == list("123456")
    assert all("limit=2" in asked for asked in served.asked[:1])
    assert found[0]["content_type"] == "text/markdown"
    again = run(f"{served.url}/items?limit=2", private, content="$.text", content_type="text/markdown", **options)
    assert (again.announced, again.uploaded, again.already_there) == (6, 0, 6)
    assert len({record["event_id"] for record in records(kinesis, private)}) == 6


def test_an_item_is_the_same_version_in_whatever_order_its_keys_come(
    private: Settings, kinesis: Any, served: Api
) -> None:
    served.answer = lambda *_: (200, {}, b'{"data":[{"id":"a","x":1,"y":2}]}')
    run(served.url, private)
    served.answer = lambda *_: (200, {}, b'{"data":[{"y":2, "x":1, "id":"a"}]}')
    assert run(served.url, private).already_there == 1
    first = records(kinesis, private)[0]
    assert first["content_type"] == "application/json"


def test_a_rate_limit_is_obeyed(private: Settings, kinesis: Any, served: Api) -> None:
    limits: Iterator[dict[str, str] | None] = iter(
        [
            {"Retry-After": "7"},
            {"Retry-After": time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 60))},
            None,
            {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(time.time()) + 90)},
        ]
    )
    statuses = iter([429, 503, 200, 403])

    def limited(path: str, parameters: dict[str, str]) -> Answer:
        headers = next(limits, None)
        return by_link(path, parameters) if headers is None else (next(statuses), headers, b"slow down")

    served.answer = limited
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            next(statuses)

    assert run(served.url, private, pause=pause).announced == 6
    assert pauses[0] == 7
    assert 55 <= pauses[1] <= 60
    assert 85 <= pauses[2] <= 90


def test_patience_has_an_end_and_the_next_run_goes_on_there(private: Settings, kinesis: Any, served: Api) -> None:
    def limited(path: str, parameters: dict[str, str]) -> Answer:
        return (429, {"Retry-After": "3600"}, b"") if parameters.get("page") == "2" else by_link(path, parameters)

    served.answer = limited
    with pytest.raises(UnreachableError, match=r"asks to wait \(429\), for too long: the same command goes on"):
        run(served.url, private)
    assert ids(kinesis, private) == ["1", "2"]
    served.asked.clear()
    served.answer = by_link
    assert run(served.url, private).announced == 4
    assert served.asked == ["/items?page=2", "/items?page=3"]
    assert ids(kinesis, private) == list("123456")


def test_who_always_asks_to_wait_no_time_is_not_asked_for_ever(private: Settings, kinesis: Any, served: Api) -> None:
    served.answer = lambda *_: (429, {"Retry-After": "0"}, b"")
    with pytest.raises(UnreachableError, match="for too long"):
        run(served.url, private)
    assert len(served.asked) < 100


def test_faults_that_pass_are_not_seen(private: Settings, kinesis: Any, served: Api) -> None:
    faults = iter([500, 502, 504])

    def faulty(path: str, parameters: dict[str, str]) -> Answer:
        status = next(faults, None)
        return by_link(path, parameters) if status is None else (status, {}, b"")

    served.answer = faulty
    assert run(served.url, private).announced == 6


def test_the_cursor_is_the_largest_value_of_a_whole_walk(private: Settings, kinesis: Any, served: Api) -> None:
    items = [note(number) for number in (5, 4, 3, 2, 1)]  # the newest first, as many APIs have it

    def since(_path: str, parameters: dict[str, str]) -> Answer:
        new = [item for item in items if item["updated"] > parameters.get("since", "")]
        at = int(parameters.get("at", "0"))
        return 200, {}, page_of(new[at : at + 2], next=at + 2 if at + 2 < len(new) else None)

    served.answer = since
    options = {"next": "$.next", "next_parameter": "at", "cursor": "$.updated", "cursor_parameter": "since"}
    interrupted = run(served.url, private, max_pages=1, **options)
    assert (interrupted.announced, interrupted.complete) == (2, False)
    # Had the value of the first page been kept, the others would never come.
    assert run(served.url, private, **options).announced == 3
    assert run(served.url, private, **options).announced == 0
    items.insert(0, note(6))
    assert run(served.url, private, **options).announced == 1
    assert "since=2026-11-05" in served.asked[-1]
    assert run(served.url, private, from_start=True, **options).announced == 6


def test_a_feed_goes_on_at_its_last_page(private: Settings, kinesis: Any, served: Api) -> None:
    feed = [note(1), note(2), note(3)]

    def answer(_path: str, parameters: dict[str, str]) -> Answer:
        at = int(parameters.get("at", "0"))
        more = at + 2 < len(feed)
        return 200, {}, page_of(feed[at : at + 2], next=at + 2 if more else None)

    served.answer = answer
    options = {"next": "$.next", "next_parameter": "at", "feed": True}
    assert run(served.url, private, **options).announced == 3
    feed += [note(4), note(5)]
    served.asked.clear()
    assert run(served.url, private, **options).uploaded == 2
    assert served.asked == ["/?at=2", "/?at=4"]


def test_when_the_announcement_fails_the_cursor_stays_and_the_next_run_completes(
    private: Settings, kinesis: Any, served: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.answer = by_link
    client = Refusing(kinesis, iter([{0}] * 10))
    monkeypatch.setattr(aws, "kinesis_client", lambda settings: client)
    monkeypatch.setattr("producers.stream.LONGEST_PAUSE_SECONDS", 0.0)
    with pytest.raises(UnreachableError, match="the same command completes"):
        run(served.url, private)
    done = run(served.url, private)
    assert (done.announced, done.already_there) == (6, 6)
    assert set(ids(kinesis, private)) == set("123456")


def test_the_token_is_sent_as_bearer_and_never_in_plain_text_to_the_world(
    private: Settings, kinesis: Any, served: Api
) -> None:
    served.answer = by_link
    secret = private.model_copy(update={"api_token": SecretStr("s3cret")})
    run(served.url, secret)
    assert served.tokens == {"Bearer s3cret"}
    with pytest.raises(SettingsError, match="plain text") as raised:
        run("http://example.org/", secret.model_copy(update={"allow_private_addresses": False}))
    assert "s3cret" not in str(raised.value)


def test_private_addresses_are_refused_unless_they_are_allowed(settings: Settings, served: Api) -> None:
    with pytest.raises(ForbiddenAddressError, match="not a public address"):
        run(served.url, settings)
    assert served.asked == []


@pytest.mark.parametrize("how", ["link", "address", "redirect"])
def test_neither_next_page_nor_redirect_leads_to_another_origin(
    private: Settings, kinesis: Any, served: Api, how: str
) -> None:
    with serving_api() as other:
        answers: dict[str, Answer] = {
            "link": (200, {"Link": f'<{other.url}/>; rel="next"'}, page_of([note(1)])),
            "address": (200, {}, page_of([note(1)], next=other.url)),
            "redirect": (302, {"Location": other.url}, b""),
        }
        served.answer = lambda *_: answers[how]
        with pytest.raises(ForbiddenAddressError, match="another origin"):
            run(served.url, private, next="$.next" if how == "address" else None)
        assert other.asked == []
    assert ids(kinesis, private) == ([] if how == "redirect" else ["1"])


def test_redirects_within_the_origin_are_followed_but_not_for_ever(
    private: Settings, kinesis: Any, served: Api
) -> None:
    served.answer = lambda path, parameters: (
        (308, {"Location": "/items"}, b"") if path == "/old" else by_link(path, parameters)
    )
    assert run(f"{served.url}/old", private).announced == 6
    served.answer = lambda *_: (302, {"Location": "/again"}, b"")
    with pytest.raises(UnreachableError, match="redirects more than 5 times"):
        run(f"{served.url}/loop", private)


def test_a_page_has_bounds_of_size_packed_and_unpacked(private: Settings, kinesis: Any, served: Api) -> None:
    small = private.model_copy(update={"api_page_bytes": 100_000})
    served.answer = lambda *_: (200, {}, page_of([note(1, more="x" * 200_000)]))
    with pytest.raises(UnreachableError, match=r"more than 100,000 bytes.*PKM_API_PAGE_BYTES"):
        run(served.url, small)
    bomb = gzip.compress(page_of([note(1, more="x" * 50_000_000)]))
    served.answer = lambda *_: (200, {"Content-Encoding": "gzip"}, bomb)
    with pytest.raises(UnreachableError, match="more than 100,000 bytes"):
        run(served.url, small)
    served.answer = lambda *_: (200, {"Content-Encoding": "gzip"}, b"not gzip")
    with pytest.raises(UnreachableError, match="can't be unpacked"):
        run(served.url, small)


def test_a_page_that_drips_has_an_end(private: Settings, served: Api) -> None:
    served.drip = True
    served.answer = lambda *_: (200, {}, b" " * 1000)
    impatient = private.model_copy(update={"request_seconds": 0.5, "retry_seconds": 0.1})
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="does not answer"):
        run(served.url, impatient)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, b"<html>", r"is not JSON \(byte 0\)"),
        (200, b"[" * 2000, "is not JSON"),
        (401, b"", "answers 401: check PKM_API_TOKEN"),
        (404, b"", "answers 404: check the address"),
        (204, b"", "answers 204"),
    ],
)
def test_what_is_no_page_is_told(private: Settings, served: Api, status: int, body: bytes, message: str) -> None:
    served.answer = lambda *_: (status, {}, body)
    with pytest.raises(UnreachableError, match=message) as raised:
        run(f"{served.url}/items?key=s3cret", private)
    assert "s3cret" not in str(raised.value)


def test_an_api_that_leads_round_in_circles_is_left(private: Settings, kinesis: Any, served: Api) -> None:
    served.answer = lambda path, parameters: (200, {}, page_of([note(1)], next="/a" if path == "/b" else "/b"))
    with pytest.raises(UnreachableError, match="the same page again"):
        run(f"{served.url}/a", private, next="$.next")


def test_items_without_id_or_content_are_left_alone_with_the_reason(
    private: Settings, kinesis: Any, served: Api
) -> None:
    items = [note(1), {"id": None, "text": "x"}, {"text": "x"}, {"id": True, "text": "x"}, {"id": 2}, {"id": 3}, 7]
    items[5]["text"] = "x" * 2000  # type: ignore[index]
    served.answer = lambda *_: (200, {}, orjson.dumps({"data": items}))
    left_alone: dict[str, str] = {}
    small = private.model_copy(update={"max_object_bytes": 1000})
    done = run(served.url, small, content="$.text", on_left_alone=left_alone.__setitem__)
    assert (done.announced, done.left_alone) == (1, 6)
    assert left_alone["item 2 of page 1"] == "has no id at $.id"
    assert left_alone["item 5 of page 1"] == "has no content at $.text"
    assert left_alone["item 6 of page 1"] == "is larger than 1,000 bytes (PKM_MAX_OBJECT_BYTES)"


def test_a_name_gives_items_an_identity_that_survives_a_move(private: Settings, kinesis: Any, served: Api) -> None:
    served.answer = by_link
    run(f"{served.url}/v1", private, name="crm")
    run(f"{served.url}/v2", private, name="crm")
    assert len({record["note_id"] for record in records(kinesis, private)}) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": "data"}, "is no JSONPath"),
        ({"id": "$.["}, "is no JSONPath"),
        ({"next_parameter": "after"}, "--next-param needs --next"),
        ({"page_parameter": "page", "next": "$.next"}, "--page-param counts pages"),
        ({"cursor": "$.updated"}, "belong together"),
    ],
)
def test_options_that_can_not_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        ApiSource(**{"url": "https://example.org", "items": "$[*]", "id": "$.id", **options})


def test_many_small_pages_are_announced_together(
    private: Settings, kinesis: Any, served: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "GROUP_SECONDS", 60.0)
    served.answer = by_link
    client = Refusing(kinesis, iter([]))
    monkeypatch.setattr(aws, "kinesis_client", lambda settings: client)
    assert run(served.url, private).pages == 3
    assert [len(call) for call in client.calls] == [6]
