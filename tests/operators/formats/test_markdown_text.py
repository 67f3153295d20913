"""Markdown and its front matter: what a reader sees, what is refused."""

from __future__ import annotations

from collections.abc import Callable

import orjson
import pytest

from operators.formats import front_matter, markdown_text
from operators.formats.extracted import Refusal

MARKDOWN = """\
---
title: The *title*
date: 2026-11-23
tags: [a, b]
---
# First `heading`

A paragraph with *emphasis*, `code` and [a link](https://example.com/x?a=1#f)
on two lines.\\
A hard break, <b>inline HTML</b><br>and <a href="rel/page.md">its link</a>, https://bare.example/y.

- one
- two [mail](mailto:a@example.com) [again](https://example.com/x?a=1#f)
  - three

| Name | Born |
|------|------|
| Ada  | 1815 |

```python
def f():
    return 1
```

<details><summary>More</summary><p>Inside <a href="/absolute">HTML</a></p></details>

> Quoted &amp; ~~gone~~ text <script>alert(1)</script>

Second heading
--------------
![a picture](picture.png) [down](#first) [evil](javascript:alert(1))
"""


def error_of(read: Callable[[str], object], text: str) -> str:
    with pytest.raises(Refusal) as caught:
        read(text)
    return caught.value.refused.error


def test_markdown_gives_what_a_reader_sees() -> None:
    found = markdown_text.read(MARKDOWN)
    assert found.text == (
        "First heading\n\n"
        "A paragraph with emphasis, code and a link on two lines.\n"
        "A hard break, inline HTML\nand its link, https://bare.example/y.\n\n"
        "one\ntwo mail again\nthree\n\n"
        "Name\tBorn\nAda\t1815\n\n"
        "def f():\n    return 1\n\n"
        "More\n\nInside HTML\n\n"
        "Quoted & gone text\n\n"
        "Second heading\n\n"
        "down [evil](javascript:alert(1))"
    )
    assert found.title == "The *title*"
    assert found.headers == ("First heading", "Second heading")
    assert found.links == (
        "https://example.com/x?a=1#f",
        "rel/page.md",
        "https://bare.example/y",
        "mailto:a@example.com",
        "/absolute",
    )
    assert orjson.loads(found.frontmatter_json) == {"title": "The *title*", "date": "2026-11-23", "tags": ["a", "b"]}


def test_markdown_without_front_matter_is_named_after_its_first_heading() -> None:
    assert markdown_text.read("text\n\n## A *heading*\n\n# Another").title == "A heading"
    assert markdown_text.read("<h1 align=center>From <i>HTML</i></h1>\n\n# Another").title == "From HTML"


@pytest.mark.parametrize("text", ["---\n\nafter a rule\n\n---\nmore", "---\nno end", "text\n---\na: 1\n---\n", ""])
def test_dashes_alone_are_no_front_matter(text: str) -> None:
    assert front_matter.split(text) == (None, text)


@pytest.mark.parametrize(
    ("source", "mapping"),
    [
        ("# only a comment", {}),
        ("a: 2026-02-30\nb: 12:30:45\n", {"a": "2026-02-30", "b": 45045}),
        ("a: 99999999999999999999\nb: .nan\nc: .inf", {"a": "0x56bc75e2d630fffff", "b": "nan", "c": "inf"}),
        ("7: x\nnull: y\non: z\n2026-01-01: d", {"7": "x", "null": "y", "true": "z", "2026-01-01": "d"}),
        ("a: !!set {x, y}\nb: !!binary aGk=", {"a": ["x", "y"], "b": "b'hi'"}),
        ('a: "\\0x"', {"a": "x"}),
    ],
)
def test_front_matter_becomes_what_json_can_hold(source: str, mapping: dict[str, object]) -> None:
    found = front_matter.read(source)
    for value in found.values():
        if isinstance(value, list):
            value.sort()
    assert found == mapping
    assert orjson.loads(front_matter.to_json(found)) == mapping


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("a: [", "NotYaml"),
        ("\tx", "NotYaml"),
        ("just text", "NotYaml"),
        ("- a\n- b", "NotYaml"),
        ("a: !!python/object/apply:os.system [x]", "NotYaml"),
        ("a: !!int x", "NotYaml"),
        ("a: !!timestamp 2026-02-30", "NotYaml"),
        ("{a: 1}: b", "NotYaml"),
        ("a: 1\n---x\nb", "NotYaml"),
        ("a: &x [1]\nb: *x", "UnsafeYaml"),
        ("a: " + "[" * 40 + "]" * 40, "TooDeep"),
        ("a: " + "[" * 60_000, "TooDeep"),
        ("9" * 5000 + ": 1", "NotYaml"),
        ("a: " + "9" * 5000, "NotYaml"),
    ],
)
def test_front_matter_that_is_no_safe_mapping_is_refused(source: str, error: str) -> None:
    assert error_of(front_matter.read, source) == error


def test_a_yaml_alias_bomb_is_refused_at_once() -> None:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    assert error_of(markdown_text.read, "---\n" + "\n".join(lines) + "\n---\ntext") == "UnsafeYaml"


def test_front_matter_is_limited_in_size() -> None:
    def document(characters: int) -> str:
        return "---\na: " + "x" * (characters - 4) + "\n---\ntext"

    assert markdown_text.read(document(front_matter.MAX_CHARACTERS)).text == "text"
    assert error_of(markdown_text.read, document(front_matter.MAX_CHARACTERS + 1)) == "TooLarge"


@pytest.mark.parametrize(
    ("source", "depth_is_fine"),
    [
        (">" * 90 + " x", True),
        (">" * 10_000 + " x", False),
        ("- " * 40 + "x", True),
        ("- " * 400 + "x", False),
        ("[" * 2000, True),
        ("*a **b " * 300, True),
    ],
)
def test_markdown_is_never_cut_in_silence(source: str, depth_is_fine: bool) -> None:
    if depth_is_fine:
        assert markdown_text.read(source).text
    else:
        assert error_of(markdown_text.read, source) == "TooDeep"
