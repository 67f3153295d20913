"""The identity of a page: the same for all the ways to write its address that can't differ, and no others."""

from __future__ import annotations

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from producers.web.urls import identity_of, link_target, site_of


@pytest.mark.parametrize(
    ("url", "identity"),
    [
        ("https://example.org", "https://example.org/"),
        ("HTTPS://Example.ORG.:443/a/./b/../c#part", "https://example.org/a/c"),
        ("http://example.org:80/?", "http://example.org/"),
        ("http://example.org:8080/a", "http://example.org:8080/a"),
        ("https://example.org/%7eann/%e4%b8%ad", "https://example.org/~ann/%E4%B8%AD"),
        ("https://example.org/\u4e2d?q=\u4e2d", "https://example.org/%E4%B8%AD?q=%E4%B8%AD"),
        ("https://b\u00fccher.example/", "https://xn--bcher-kva.example/"),
        ("https://example.org/a?b=2&a=1&b=1", "https://example.org/a?a=1&b=1&b=2"),
        ("https://example.org/a?utm_source=x&id=7&UTM_Medium=y&fbclid=z", "https://example.org/a?id=7"),
        ("https://example.org/a?gclid=z", "https://example.org/a"),
        ("http://[0:0:0:0:0:0:0:1]:8080/", "http://[::1]:8080/"),
    ],
)
def test_what_can_not_differ_is_left_out_of_an_identity(url: str, identity: str) -> None:
    assert identity_of(httpx2.URL(url)) == identity


@pytest.mark.parametrize(
    "others",
    [
        ("http://example.org/a", "https://example.org/a"),
        ("https://example.org/a", "https://example.org/a/"),
        ("https://example.org/a", "https://example.org/A"),
        ("https://example.org/a%2Fb", "https://example.org/a/b"),
        ("https://example.org/a?b", "https://example.org/a?c"),
        ("https://example.org/a", "https://www.example.org/a"),
    ],
)
def test_what_a_server_may_answer_differently_stays_apart(others: tuple[str, str]) -> None:
    first, second = (identity_of(httpx2.URL(url)) for url in others)
    assert first != second


@given(
    st.text("ab/.%~?&=+#;\u00e9", max_size=30),
    st.sampled_from(["http://example.org", "https://EXAMPLE.org:443", "http://example.org:8080"]),
)
def test_an_identity_is_its_own_identity(path: str, host: str) -> None:
    identity = identity_of(httpx2.URL(f"{host}/{path}"))
    assert identity_of(httpx2.URL(identity)) == identity


def test_a_site_is_a_host_with_or_without_www_and_encryption() -> None:
    urls = ("http://example.org/a", "https://www.example.org./b", "https://EXAMPLE.org:443")
    assert {site_of(httpx2.URL(url)) for url in urls} == {"example.org"}
    assert site_of(httpx2.URL("http://example.org:8080")) == "example.org:8080"
    assert site_of(httpx2.URL("http://a.example.org")) == "a.example.org"
    assert site_of(httpx2.URL("http://[::1]:8080")) == "[::1]:8080"


@pytest.mark.parametrize(
    ("href", "target"),
    [
        ("b", "https://example.org/a/b"),
        ("../c?d=1#e", "https://example.org/c?d=1"),
        (" \n/x\ty ", "https://example.org/xy"),
        ("//other.example/", "https://other.example/"),
        ("http://other.example", "http://other.example/"),
    ],
)
def test_a_link_is_read_as_a_browser_does(href: str, target: str) -> None:
    found = link_target("https://example.org/a/", href)
    assert found is not None
    assert identity_of(found) == target


@pytest.mark.parametrize(
    "href",
    [
        *("", "#top", "mailto:ann@example.org", "javascript:void(0)", "data:text/html,x", "ftp://example.org/"),
        *("https://ann:secret@example.org/", "http://[::1", "http://example.org:port/", "a" * 3000),
    ],
)
def test_what_is_no_page_of_the_web_is_no_target(href: str) -> None:
    assert link_target("https://example.org/a/", href) is None
