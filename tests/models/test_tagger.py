"""The entity model: what it finds, offsets, windows and pieces, foreign models, faults."""

from __future__ import annotations

import json
import shutil
import time
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import BertConfig, BertForTokenClassification, BertTokenizerFast

from core.errors import ModelError
from models import tagger as tagger_module
from models.entity.loading import OWN_FOLDER, OwnClassifier, base_tokenizer
from models.entity.network import FEATURES, features
from models.tagger import EMBEDDED, Tagger, Window, load_tagger, windows

SENTENCE = "Angela Merkel met Emmanuel Macron in Paris."


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return load_tagger(EMBEDDED, threads=None)


class CapitalWords:
    """A classifier whose answer a test can predict: a capital makes a person, the word before it has no say."""

    labels = ("O", "B-PER", "I-PER")
    needs_capital = False

    def __init__(self, *, window_tokens: int = 12, overlap_tokens: int = 6, wrong_at_edges: bool = True) -> None:
        self.window_tokens, self.overlap_tokens = window_tokens, overlap_tokens
        self.wrong_at_edges = wrong_at_edges
        self.batches: list[tuple[int, ...]] = []

    def features(
        self, text: str, offsets: Sequence[tuple[int, int]], words: Sequence[int | None]
    ) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        return np.array([[text[start].isupper()] for start, _ in offsets], dtype=np.int64).reshape(-1, 1)

    def probabilities(self, ids: Tensor, mask: Tensor, extra: Tensor) -> Tensor:
        self.batches.append(tuple(ids.shape))
        capital = extra[:, :, 0]
        before = torch.nn.functional.pad(capital, (1, -1))
        label = capital + capital * before
        # At the edges of a window, beside [CLS] and [SEP], this classifier is always wrong, unless it is told not to.
        edge = ((ids == 101) | (ids == 102)) & self.wrong_at_edges
        beside = torch.nn.functional.pad(edge, (1, -1)) | torch.nn.functional.pad(edge, (-1, 1))
        return torch.nn.functional.one_hot(torch.where(beside, 0, label), 3).float()


def places(found: Sequence[tagger_module.Entity]) -> list[tuple[str, str]]:
    return [(entity.text, entity.type) for entity in found]


def check(text: str, found: Sequence[tagger_module.Entity]) -> None:
    end = 0
    for entity in found:
        assert end <= entity.start < entity.end
        assert text[entity.start : entity.end] == entity.text
        assert entity.text == entity.text.strip()
        assert 0 < entity.score <= 1
        assert entity.type in {"PER", "ORG", "LOC", "MISC"}
        end = entity.end


def test_the_shipped_model_finds_people_and_places(tagger: Tagger) -> None:
    assert places(tagger.find([SENTENCE])[0]) == [
        ("Angela Merkel", "PER"),
        ("Emmanuel Macron", "PER"),
        ("Paris", "LOC"),
    ]


def test_every_occurrence_is_found_with_its_own_offsets(tagger: Tagger) -> None:
    found = tagger.find([f"{SENTENCE}\n{SENTENCE}"])[0]
    assert [entity.start for entity in found if entity.text == "Paris"] == [37, 37 + len(SENTENCE) + 1]


def test_words_without_names_give_nothing(tagger: Tagger) -> None:
    assert tagger.find(["The parser reads the file once and returns a list.", "", "  \n", "---", "."]) == [[]] * 5


def test_texts_in_one_call_do_not_change_each_other(tagger: Tagger) -> None:
    texts = [SENTENCE, "Anna lives in Oslo. " * 40, "", "We flew to Lisbon with Maria Silva."]
    together = tagger.find(texts)
    for text, found in zip(texts, together, strict=True):
        alone = tagger.find([text])[0]
        assert [(one.start, one.end, one.type) for one in alone] == [(one.start, one.end, one.type) for one in found]
        np.testing.assert_allclose([one.score for one in alone], [one.score for one in found], atol=1e-4)


ODD = [
    "Zoë Müller\u2019s café 👩\u200d👩\u200d👧\u200d👦 in São Paulo\r\nJosé met Ana.\r\n",
    unicodedata.normalize("NFD", "Zoë Müller met José Peña in São Paulo. André"),
    "İbrahim İnönü lives in İstanbul, ﬁnally; \u0130\u0307.",
    "Anna\ud800 met \udfffTom in Paris",
    "\x00Anna\x00 in\u200bParis \ufeffTom",
    "東京 に Anna が いる、Сергей живёт в Москве",
    "A" * 300 + " Paris",
    "\u0301\u0301 Anna \u0301",
]


@given(st.lists(st.text(alphabet=st.characters(), max_size=30), max_size=8))
@settings(deadline=None, max_examples=15)
@example(["", *ODD])
def test_whatever_the_text_offsets_hold_and_entities_do_not_overlap(texts: list[str]) -> None:
    # Alone a random text holds no names; inside a sentence some of it is taken for one.
    all_texts = [*texts, *(f"Anna {text} met Tom in {text}." for text in texts)]
    for text, found in zip(all_texts, _shared().find(all_texts), strict=True):
        check(text, found)


@given(st.text(alphabet=st.characters() | st.sampled_from("ABCxyz \n\u0301"), max_size=80))
@settings(deadline=None, max_examples=100)
def test_offsets_hold_for_a_model_that_finds_names_everywhere(text: str) -> None:
    check(text, Tagger(CapitalWords(), base_tokenizer()).find([text])[0])


_loaded: list[Tagger] = []


def _shared() -> Tagger:
    # hypothesis and module fixtures do not mix well: the model is loaded once here.
    if not _loaded:
        _loaded.append(load_tagger(EMBEDDED, threads=None))
    return _loaded[0]


@given(st.integers(0, 400), st.integers(2, 60), st.data())
def test_windows_keep_each_token_once_and_far_from_an_edge(length: int, size: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(0, size - 1))
    cover = windows(length, size, overlap)
    assert [token for one in cover for token in range(one.keep_start, one.keep_end)] == list(range(length))
    for one in cover:
        assert 0 <= one.start <= one.keep_start <= one.keep_end <= one.end <= length
        assert one.end - one.start == min(size, length)
        assert one.start == 0 or one.keep_start - one.start >= overlap // 2
        assert one.end == length or one.end - one.keep_end >= overlap // 2


def test_a_short_text_is_one_window() -> None:
    assert windows(5, 10, 4) == [Window(0, 5, 0, 5)]


@pytest.mark.parametrize("shift", range(12))
def test_a_name_across_the_edge_of_a_window_is_found_once(shift: int) -> None:
    text = "and " * shift + "then Ada King Byron Lovelace wrote a long letter to her old friend about it " * 3
    found = Tagger(CapitalWords(), base_tokenizer()).find([text])[0]
    assert [entity.text for entity in found] == ["Ada King Byron Lovelace"] * 3
    check(text, found)


def test_windows_of_all_texts_share_batches_under_the_token_budget() -> None:
    classifier = CapitalWords(window_tokens=34)
    texts = ["a few words"] * 40 + ["long text without a name " * 40] * 3 + ["one"] * 40
    Tagger(classifier, base_tokenizer(), batch_tokens=340).find(texts)
    assert all(rows * length <= 340 for rows, length in classifier.batches)
    assert (10, 34) in classifier.batches
    assert len(classifier.batches) < 20


def test_a_text_of_100_kilobytes_is_read_to_its_end() -> None:
    text = "nothing to see here, " * 5000 + "says Ada Lovelace today"
    found = Tagger(CapitalWords(window_tokens=250), base_tokenizer(), batch_tokens=50_000).find([text])[0]
    assert places(found) == [("Ada Lovelace", "PER")]
    assert found[0].start == text.index("Ada")


def test_a_megabyte_of_anything_is_read_to_its_end_in_seconds() -> None:
    parts = [
        "Ada met Tom. " * 15_000,
        "x" * 200_000,
        "😀👩\u200d👧" * 50_000,
        "שלום آنا " * 25_000,
        "f(x)={k:v}\n" * 18_000,
    ]
    text = "".join(parts) + " says Ada Lovelace"
    started = time.perf_counter()
    found = Tagger(CapitalWords(window_tokens=250), base_tokenizer(), batch_tokens=50_000).find([text])[0]
    assert time.perf_counter() - started < 60
    assert len(text) > 1_000_000
    assert found[-1].text == "Ada Lovelace"
    check(text, found)


@pytest.mark.parametrize("gap", ["\n\n", "\n", " "])
def test_a_text_that_is_read_in_pieces_gives_what_it_gives_whole(gap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tagger = Tagger(CapitalWords(window_tokens=64, wrong_at_edges=False), base_tokenizer())
    sentences = ["so Ada worked in Paris then", "and Tom met Eve in London too", "it rained"]
    texts = [gap.join(sentences * 8), "", "and Zoe"]
    whole = tagger.find(texts)
    sizes: list[int] = []
    find = tagger._find
    monkeypatch.setattr(tagger, "_find", lambda pieces: sizes.append(sum(map(len, pieces))) or find(pieces))
    monkeypatch.setattr(tagger_module, "READ_CHARACTERS", 120)

    in_pieces = tagger.find(texts)

    assert in_pieces == whole
    assert [len(found) for found in whole] == [40, 0, 1]
    assert len(sizes) > 2
    assert max(sizes) < 2 * 120


def test_a_text_without_any_space_is_cut_all_the_same(tagger: Tagger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tagger_module, "READ_CHARACTERS", 10)
    (found,) = tagger.find(["x" * 95])
    assert all(0 <= entity.start < entity.end <= 95 for entity in found)


def test_a_name_does_not_reach_over_a_blank_line() -> None:
    found = Tagger(CapitalWords(), base_tokenizer()).find(["so Ada\nLovelace and Tom\n\nJones came"])[0]
    assert [entity.text for entity in found] == ["Ada\nLovelace", "Tom", "Jones"]


def test_quotes_and_dashes_around_a_name_and_bare_numbers_are_no_entities() -> None:
    class Everything(CapitalWords):
        def features(
            self, text: str, offsets: Sequence[tuple[int, int]], words: Sequence[int | None]
        ) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
            return np.ones((len(offsets), 1), dtype=np.int64)

    found = Tagger(Everything(window_tokens=50), base_tokenizer()).find(
        ["it '-Ray Inc.-' it", "it 4711 it", "it -- it"]
    )
    assert [[entity.text for entity in entities] for entities in found] == [["Ray Inc."], [], []]


def test_case_features_tell_words_apart() -> None:
    text = "Anna uses HTTP.\n\n# Getting Started\nSee 42 and iPhone."
    encoding = base_tokenizer().encode(text, add_special_tokens=False)
    rows = features(text, encoding.offsets, encoding.word_ids)
    shown = dict(zip((text[start:end] for start, end in encoding.offsets), map(tuple, rows.tolist()), strict=True))
    assert shown["Anna"] == (2, 1, 1)
    assert shown["uses"] == (1, 3, 1)
    assert shown["HTTP"][0] == 4
    assert shown["Getting"] == (2, 1, 2)
    assert shown["Started"] == (2, 3, 2)
    assert [shown[word][0] for word in ("42", "iPhone")] == [7, 6]
    assert shown["See"] == (2, 1, 1)
    assert (rows < np.array(FEATURES)).all()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Ada", "met", "Tom", "in", "Paris", ".", "##s"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), do_lower_case=False).save_pretrained(folder)
    labels = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    torch.manual_seed(1)
    model = BertForTokenClassification(
        BertConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=20,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
        )
    )
    model.save_pretrained(folder)
    return folder


def test_a_hugging_face_folder_is_loaded_and_reads_long_texts(foreign: Path) -> None:
    loaded = load_tagger(str(foreign), threads=None)
    text = "Ada met Tom in Paris . " * 30
    found = loaded.find([text, "", "Ada"])
    assert len(found) == 3
    assert found[0]
    for one, whole in zip(found, (text, "", "Ada"), strict=True):
        check(whole, one)


def test_labels_without_prefix_join_neighbours(foreign: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(foreign, folder)
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(index): "PERSON" for index in range(5)}
    (folder / "config.json").write_text(json.dumps(config))
    assert places(load_tagger(str(folder), threads=None).find(["Ada met Tom"])[0]) == [("Ada met Tom", "PER")]


def broken(foreign: Path, folder: Path, case: str) -> str:
    shutil.copytree(foreign, folder)
    config = json.loads((folder / "config.json").read_text())
    if case == "labels of another kind":
        config["id2label"] = {str(index): f"LABEL_{index}" for index in range(5)}
    if case == "no classifier":
        BertForTokenClassification.from_pretrained(folder).bert.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
    if case == "damaged weights":
        (folder / "model.safetensors").write_bytes(b"nothing")
    if case == "no weights":
        (folder / "model.safetensors").unlink()
    if case == "unknown architecture":
        config["model_type"] = "nonesuch"
        config["architectures"] = ["Nonesuch"]
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("labels of another kind", "LABEL_0"),
        ("no classifier", "no token classifier"),
        ("damaged weights", "can't be loaded"),
        ("no weights", "safetensors"),
        ("unknown architecture", "can't be loaded"),
    ],
)
def test_a_model_that_can_not_be_used_is_named_in_one_line(
    foreign: Path, tmp_path: Path, case: str, words: str
) -> None:
    name = broken(foreign, tmp_path / "broken", case)
    with pytest.raises(ModelError) as raised:
        load_tagger(name, threads=None)
    assert name in str(raised.value)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_hub_that_is_offline_is_said_with_the_name_of_the_model() -> None:
    with pytest.raises(ModelError, match=r'"dbmdz/nonesuch" can\'t be loaded \(HF_HUB_OFFLINE is set\)') as raised:
        load_tagger("dbmdz/nonesuch", threads=None)
    assert "\n" not in str(raised.value)


def test_damaged_weights_of_our_own_model_are_a_model_error(tmp_path: Path) -> None:
    shutil.copy(OWN_FOLDER / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"-m models\.training\.train") as raised:
        load_tagger(str(tmp_path), threads=None)
    assert str(tmp_path) in str(raised.value)


def test_all_who_ask_at_once_get_one_model(monkeypatch: pytest.MonkeyPatch) -> None:
    load_own, loaded = tagger_module.load_own, []

    def slowly(folder: Path) -> OwnClassifier:
        loaded.append(folder)
        time.sleep(0.05)
        return load_own(folder)

    monkeypatch.setattr(tagger_module, "load_own", slowly)
    tagger_module._load.cache_clear()
    with ThreadPoolExecutor(4) as workers:
        found = list(workers.map(lambda _: load_tagger(EMBEDDED, threads=None), range(4)))
    assert len(loaded) == 1
    assert all(one is found[0] for one in found)


def test_threads_are_set_when_asked_for() -> None:
    before = torch.get_num_threads()
    try:
        load_tagger(EMBEDDED, threads=1)
        assert torch.get_num_threads() == 1
        load_tagger(EMBEDDED, threads=None)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
