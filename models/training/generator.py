"""Endless labelled texts from templates, word lists and faker's names; the same seed gives the same texts."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, resources

from models.training.markup import TYPES, Labelled

__all__ = ["Generator"]

_SLOT = re.compile(r"\{([A-Za-z_.]+)\}")

# Latin script only: the tokenizer has no word pieces worth the name for others.
_LOCALES = (
    ("en_US", 6), ("en_GB", 4), ("en_IN", 4), ("en_NZ", 1), ("de_DE", 3), ("fr_FR", 3), ("es_ES", 2), ("es_MX", 2),
    ("it_IT", 2), ("pt_BR", 2), ("nl_NL", 2), ("pl_PL", 2), ("sv_SE", 1), ("no_NO", 1), ("da_DK", 1), ("fi_FI", 1),
    ("cs_CZ", 1), ("hu_HU", 1), ("ro_RO", 1), ("hr_HR", 1), ("tr_TR", 2), ("id_ID", 2), ("yo_NG", 2), ("zu_ZA", 1),
    ("de_AT", 1), ("de_CH", 1), ("es_AR", 1), ("es_CL", 1), ("es_CO", 1), ("fr_CA", 1), ("fr_DZ", 2), ("pt_PT", 1),
    ("nl_BE", 1), ("sk_SK", 1), ("sl_SI", 1), ("et_EE", 1), ("lv_LV", 1), ("lt_LT", 1), ("is_IS", 1), ("en_IE", 1),
    ("en_KE", 1), ("en_NG", 1), ("en_PK", 2), ("en_TH", 1), ("ig_NG", 1), ("sw", 1), ("tw_GH", 1), ("uz_UZ", 1),
)  # fmt: skip
_NAMES_PER_WEIGHT = 100

_GROUPS = {
    "news": 16, "life": 12, "notes": 8, "headline": 2, "software": 11, "none": 20, "manual": 5, "mail": 4,
    "minutes": 8, "places": 9, "research": 6, "lists": 6, "business": 11, "people": 12, "ambiguous": 6,
    "headlines": 5, "capitals": 7, "plain": 13,
}  # fmt: skip
"""How often a sentence comes from each group of templates; `manual` are sentences of Python's own documentation."""

_TITLE_CASE = {"headlines": 0.75, "capitals": 0.75, "news": 0.05, "business": 0.05, "people": 0.03, "none": 0.03}
"""How often a sentence of a group is written As in a Headline."""

_SMALL_WORDS = re.compile(r"an?|and|as|at|but|by|for|from|in|into|of|on|or|over|the|to|with")

_TEXT_LENGTHS = (1, 1, 1, 2, 2, 3, 4, 6)
_JOINTS = (" ", " ", " ", " ", "\n", "\n\n", "\n- ")


@dataclass(slots=True)
class _Piece:
    text: str
    kind: str | None = None


class Generator:
    """Makes labelled texts from one seed.

    Needs faker (extra `train`). Texts are one to six sentences, joined as in prose, notes or lists.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311 - sentences, not secrets
        self._templates = _read_templates()
        self._lists = _read_lists() | _names(seed)
        self._manual = _manual_sentences()

    def texts(self) -> Iterator[Labelled]:
        """Give texts without end."""
        while True:
            yield self.text(self._random.choice(_TEXT_LENGTHS))

    def text(self, sentences: int) -> Labelled:
        """Make one text of so many sentences."""
        joint = self._random.choice(_JOINTS)
        text = joint.lstrip("\n") if joint.endswith("- ") else ""
        spans: list[tuple[int, int, str]] = []
        for number in range(sentences):
            if number:
                # What has no full stop is a line of its own.
                text += joint if text.endswith((".", "!", "?")) or "\n" in joint else "\n"
            sentence = self.sentence()
            spans += [(start + len(text), end + len(text), kind) for start, end, kind in sentence.spans]
            text += sentence.text
        return Labelled(text, tuple(spans))

    def sentence(self) -> Labelled:
        """Make one sentence, heading, list item or table row."""
        group = self._random.choices(tuple(_GROUPS), tuple(_GROUPS.values()))[0]
        if group == "manual":
            return Labelled(self._random.choice(self._manual), ())
        pieces = self._expand(self._random.choice(self._templates[group]))
        if self._random.random() < _TITLE_CASE.get(group, 0):
            _title(pieces)
        return self._assemble(pieces)

    def _expand(self, template: str, *, inside: bool = False) -> list[_Piece]:
        pieces = []
        parts = _SLOT.split(template)
        for index, part in enumerate(parts):
            if index % 2 == 0:
                pieces.append(_Piece(part))
                continue
            kind = part.partition(".")[0]
            expanded = self._expand(self._random.choice(self._lists[part]), inside=inside or kind in TYPES)
            if inside or kind not in TYPES:
                pieces += expanded
                continue
            name = "".join(piece.text for piece in expanded)
            # The article is no part of the name, unless it is written with a capital, as in The Hague.
            if name.startswith("the "):
                pieces += [_Piece("the "), _Piece(name[4:], kind)]
            else:
                pieces.append(_Piece(name, kind))
        return pieces

    def _assemble(self, pieces: list[_Piece]) -> Labelled:
        first = next((piece for piece in pieces if piece.text), None)
        if first is not None and first.kind is None and first.text[0].islower() and self._random.random() < 0.9:
            first.text = first.text[0].upper() + first.text[1:]
        shout = self._random.random() < 0.015
        text = ""
        spans = []
        for piece in pieces:
            # ß and others grow in capitals; lengths are taken after the change.
            written = piece.text.upper() if shout else piece.text
            if piece.kind is not None:
                spans.append((len(text), len(text) + len(written), piece.kind))
            text += written
        return Labelled(text, tuple(spans))


def _title(pieces: list[_Piece]) -> None:
    """Write all words but the small ones with a capital, in place; names stay, and the full stop goes."""
    for piece in pieces:
        if piece.kind is None:
            piece.text = re.sub(
                r"(?<![\w'`<./-])[a-z]\w+",
                lambda word: word[0] if _SMALL_WORDS.fullmatch(word[0]) else word[0].capitalize(),
                piece.text,
            )
    if pieces and pieces[-1].text.endswith("."):
        pieces[-1].text = pieces[-1].text[:-1]


def _stored_lines(name: str) -> list[str]:
    stored = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
    return [line for line in stored.splitlines() if line.strip() and not line.startswith(";")]


def _read_templates() -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    current: list[str] = []
    for line in _stored_lines("templates.txt"):
        header = re.fullmatch(r"\[([a-z]+)\]", line)
        if header:
            current = groups.setdefault(header[1], [])
        else:
            current.append(line.replace("\\n", "\n"))
    return groups


def _read_lists() -> dict[str, list[str]]:
    lists = {}
    for line in (*_stored_lines("names.txt"), *_stored_lines("lexicon.txt")):
        name, _, choices = line.partition(": ")
        lists[name] = choices.split(" | ")
    return lists


def _names(seed: int) -> dict[str, list[str]]:
    from faker import Faker

    lists: dict[str, list[str]] = {"first": [], "surname": [], "faker_city": [], "faker_company": []}
    for locale, weight in _LOCALES:
        source = Faker(locale)
        source.seed_instance(seed)
        for _ in range(weight * _NAMES_PER_WEIGHT):
            lists["first"].append(source.first_name())
            lists["surname"].append(source.last_name())
            if locale != "it_IT":
                # faker keeps Italian towns in a set, whose order changes from process to process.
                lists["faker_city"].append(source.city())
            lists["faker_company"].append(source.company())
    return {name: [_plain(choice) for choice in choices if choice] for name, choices in lists.items()}


def _plain(name: str) -> str:
    # Braces would be slots.
    return name.replace("{", "").replace("}", "").strip()


def _manual_sentences() -> list[str]:
    """Sentences of Python's manual in which only the first word has a capital: natural texts without names."""
    topics = import_module("pydoc_data.topics").topics
    sentences = set()
    for topic in sorted(topics):
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])|\n\n+", topics[topic]):
            joined = " ".join(sentence.split())
            if (
                30 <= len(joined) <= 220
                and joined[0].isupper()
                and joined.endswith(".")
                and re.search(r"[A-Z]", joined[1:]) is None
                and re.match(r"(Python|Unicode|Windows|Linux|Jython)\b", joined) is None
            ):
                sentences.add(joined)
    return sorted(sentences)
