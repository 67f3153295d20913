"""Both profiles are loaded by the same code, once, before the stream starts; the cloud's on small models."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from core.errors import ModelError
from core.settings import Settings
from models import hardware
from models.embedder import load_embedder
from models.registry import profile
from models.start import load_models
from models.tagger import load_tagger
from tiny import sentence_model, token_classifier

REPOSITORY = Path(__file__).parents[2]
TEXTS = ["cat", "", "a stream of cats, and of dogs.", "stream " * 200, "数 ü \x00", "the cat sat: it did not move"]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("models")
    return Settings(
        enrich="cloud",
        embedding_model=str(sentence_model(folder / "mpnet")),
        entity_model=str(token_classifier(folder / "bert")),
    )


@pytest.fixture(autouse=True)
def _threads() -> object:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_clouds_embedding_model_gives_the_vectors_of_sentence_transformers(cloud: Settings) -> None:
    load_models(cloud)
    name = str(profile(cloud).embedding)
    embedder = load_embedder(name, threads=None)
    assert (embedder.dimension, embedder.max_tokens) == (32, 62)
    reference = SentenceTransformer(name, device="cpu")
    for text, row in zip(TEXTS, embedder.encode(TEXTS), strict=True):
        assert float(row @ reference.encode(text, normalize_embeddings=True)) == pytest.approx(1, abs=1e-5)


def test_the_clouds_entity_model_reads_long_texts_with_the_labels_of_conll(cloud: Settings) -> None:
    load_models(cloud)
    text = "Ada met Bob in Paris. " * 40
    found = load_tagger(str(profile(cloud).entities), threads=None).find([text, ""])
    assert found[1] == []
    assert found[0]
    for entity in found[0]:
        assert text[entity.start : entity.end] == entity.text
        assert entity.type in {"PER", "ORG", "LOC", "MISC"}


def test_a_model_that_wants_a_prompt_gets_it_and_room_for_it(cloud: Settings, tmp_path: Path) -> None:
    model = SentenceTransformer(str(cloud.embedding_model), device="cpu")
    model.prompts, model.default_prompt_name = {"passage": "passage: "}, "passage"
    model.save(str(tmp_path / "prompted"), create_model_card=False)
    embedder = load_embedder(str(tmp_path / "prompted"), threads=None)
    assert embedder.max_tokens == 62 - len("passage:")
    longest = "cat " * embedder.max_tokens
    reference = SentenceTransformer(str(tmp_path / "prompted"), device="cpu")
    for text, row in zip(["cat", longest], embedder.encode(["cat", longest]), strict=True):
        assert float(row @ reference.encode(text, normalize_embeddings=True)) == pytest.approx(1, abs=1e-5)
    assert (
        float(
            embedder.encode(["cat"])[0] @ load_embedder(str(cloud.embedding_model), threads=None).encode(["cat"])[0]
        )
        < 1
    )


def test_a_digest_names_weights_and_settings_wherever_they_were_loaded_from(cloud: Settings, tmp_path: Path) -> None:
    first = load_embedder(str(cloud.embedding_model), threads=None)
    model = SentenceTransformer(str(cloud.embedding_model), device="cpu")
    model.save(str(tmp_path / "same"), create_model_card=False)
    with torch.no_grad():
        model[0].auto_model.embeddings.word_embeddings.weight[5, 0] += 1e-6
    model.save(str(tmp_path / "other"), create_model_card=False)
    assert load_embedder(str(tmp_path / "same"), threads=None).digest == first.digest
    assert load_embedder(str(tmp_path / "other"), threads=None).digest != first.digest


def test_without_enrichment_nothing_is_loaded() -> None:
    code = (
        "import sys; from core.settings import Settings; from models.start import load_models; "
        "load_models(Settings(enrich='none')); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_workers_share_the_threads_that_torch_would_take(cloud: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_all_threads", lambda: 8)
    for workers, threads in ((3, 2), (2, 4), (20, 1)):
        load_models(cloud, workers=workers)
        assert torch.get_num_threads() == threads
    load_models(cloud.model_copy(update={"threads": 3}), workers=2)
    assert torch.get_num_threads() == 3


def test_a_processor_computes_in_single_precision_and_cuda_in_half(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hardware.precision("cpu") is torch.float32
    for native, expected in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda native=native, **_: native)
        assert hardware.precision("cuda") is expected


def test_models_in_half_precision_give_single_precision_results(
    cloud: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_embedder(str(cloud.embedding_model), threads=None).encode(TEXTS)
    monkeypatch.setattr("models.embedder.precision", lambda _: torch.bfloat16)
    monkeypatch.setattr("models.tagger.precision", lambda _: torch.bfloat16)
    for name in ("mpnet", "bert"):
        (tmp_path / name).symlink_to(Path(str(cloud.embedding_model)).parent / name)
    half = load_embedder(str(tmp_path / "mpnet"), threads=None).encode(TEXTS)
    assert half.dtype == np.float32
    assert (half * whole).sum(axis=1).min() > 1 - 1e-3
    load_tagger(str(tmp_path / "bert"), threads=None).find(["Ada met Bob."])


def run_flow(**variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PKM_"))}
    return subprocess.run(
        [sys.executable, "-m", "bytewax.run", "flows.knowledge:flow"],
        cwd=REPOSITORY,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "setting", ["PKM_EMBEDDING_MODEL", pytest.param("PKM_ENTITY_MODEL", marks=pytest.mark.thorough)]
)
def test_a_missing_model_ends_the_flow_at_once_with_one_line_before_anything_is_reached(setting: str) -> None:
    # An endpoint that does not answer would be the first thing to fail otherwise.
    done = run_flow(**{setting: "package:no_such_model", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        'pkm: model "package:no_such_model" is not an installed package with a model/ folder: pip install it'
    ]


def test_load_models_names_the_model_that_is_missing() -> None:
    with pytest.raises(ModelError, match="no_such_model"):
        load_models(Settings(entity_model="package:no_such_model"))
