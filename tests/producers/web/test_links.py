"""Links of a page: what a reader could click, nothing for robots to be kept from."""

from __future__ import annotations

import time

import httpx2

from producers.web.links import links_of

URL = httpx2.URL("https://example.org/a/page")


def links(html: str) -> list[str]:
    return [str(link) for link in links_of(html.encode(), URL)]


def test_links_are_resolved_once_each_in_order() -> None:
    html = """
        <a href="b">1</a> <a href='/c?x=1&amp;y=2#part'>2</a> <map><area href="//other.example/d"></map>
        <a href="b#again">1 again</a> <a>none</a> <a href="mailto:ann@example.org">mail</a> <a href="#top">top</a>
        <a rel="external NOFOLLOW" href="/secret">no</a> <!-- <a href="/comment">no</a> -->
        <script>"<a href='/script'>no</a>"</script>
    """
    assert links(html) == ["https://example.org/a/b", "https://example.org/c?x=1&y=2", "https://other.example/d"]


def test_a_base_is_where_links_begin() -> None:
    assert links('<base href="/deep/er/"><a href="x">x</a>') == ["https://example.org/deep/er/x"]
    assert links('<base href="javascript:x"><a href="x">x</a>') == ["https://example.org/a/x"]


def test_a_page_leads_to_a_thousand_others_at_most() -> None:
    assert len(links("".join(f'<a href="/{number}">x</a>' for number in range(1500)))) == 1000


def test_pages_that_are_made_to_be_slow_are_not() -> None:
    begun = time.process_time()
    assert links("<div>" * 40_000 + '<a href="x">x</a>') == []
    links("<a href=x " * 200_000)
    links("<" * 2_000_000)
    assert len(links("<p><a href=/x>" * 200_000)) <= 1
    assert time.process_time() - begun < 8
