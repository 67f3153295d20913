"""The main text of a page: without what stands beside it, and never without the text itself."""

from __future__ import annotations

import pytest

from operators.formats import html_text

TEXT = "Water boils at a hundred degrees, and lower where the air is thin. " * 12
BESIDE = """
    <header><div id="logo">The Cook</div><ul class="main-menu"><li><a href="/shop">Shop</a></ul></header>
    <nav><a href="/">Home</a></nav><div role="navigation"><a href="/b">Section</a></div>
    <div class="left-sidebar"><a href="/1">First other page</a> <a href="/2">Second other page</a></div>
    <div class="wide related">You may like this too</div><div id="cookie-banner">We use cookies</div>
    <p hidden>kept</p><section hidden>Not shown</section>
"""
FOOTER = "<footer>All rights reserved</footer><div class='site-footer'>Imprint</div>"


def page(body: str) -> str:
    return f"<!doctype html><title>Boiling</title><body>{BESIDE}{body}{FOOTER}</body>"


@pytest.mark.parametrize(
    "body",
    [
        f"<main><h1>Water</h1><p>{TEXT}</p></main>",
        f"<div role='main'><h1>Water</h1><p>{TEXT}</p></div>",
        f"<article class='menu'><h1>Water</h1><p>{TEXT}</p><footer>by Ann</footer></article>",
    ],
)
def test_the_main_element_is_the_text(body: str) -> None:
    found = html_text.read(page(body))
    assert found.text == f"Water\n\n{TEXT.strip()}"
    assert (found.title, found.headers, found.links) == ("Boiling", ("Water",), ())


def test_without_a_main_element_what_stands_beside_the_text_is_left_out() -> None:
    found = html_text.read(page(f"<div><h1>Water</h1><p>{TEXT}</p><p><a href='/salt'>salt</a></p></div>"))
    assert found.text == f"The Cook\n\nkept\n\nWater\n\n{TEXT.strip()}\n\nsalt"
    assert found.links == ("/salt",)


def test_several_articles_are_all_of_the_text() -> None:
    found = html_text.read(page(f"<article>{TEXT}</article><article>Second</article>"))
    assert "Water boils" in found.text
    assert "Second" in found.text


def test_a_page_of_nothing_but_links_is_read_whole() -> None:
    body = "<nav>" + "".join(f"<a href='/{number}'>Chapter number {number}</a> " for number in range(40)) + "</nav>"
    found = html_text.read(f"<body><p>Contents</p>{body}</body>")
    assert "Chapter number 39" in found.text
    assert len(found.links) == 40


def test_a_main_element_that_a_script_would_fill_does_not_hide_the_text() -> None:
    found = html_text.read(f"<body><main>Loading</main><div>{TEXT}</div></body>")
    assert "Water boils" in found.text


def test_a_short_page_is_all_there() -> None:
    assert html_text.read("<body><nav>Home</nav><p>A short note about water and how it boils.</p>").text == (
        "A short note about water and how it boils."
    )
    assert html_text.read("").text == ""


def test_boxes_of_the_text_stay() -> None:
    body = f"""<main><p>{TEXT}</p><div class="sidebar">In the mountains it takes longer.
        <a href="/x">See</a></div><aside>A note.</aside><blockquote>Boil!<footer>Ann</footer></blockquote>
        <p class="menu">A menu.</p><h2>More<a class="headerlink" href="#more">¶</a></h2></main>"""
    text = html_text.read(page(body)).text
    for kept in ("In the mountains it takes longer. See", "A note.", "Ann", "A menu."):
        assert kept in text
    assert text.endswith("More")
