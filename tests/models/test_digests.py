"""Which models are let in: safetensors only, and the files that a digest or a manifest names."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import obstore
import pytest

from core import aws
from core.errors import ModelError
from core.settings import Settings
from models.digests import MANIFEST, check_weights, split_digest, verify
from models.registry import locate


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (folder / "1_Pooling" / "config.json").write_text("[]")
    (folder / "README.md").write_text("not read, not counted")
    return folder


def digest_by_the_shell(folder: Path) -> str:
    """What the documented command prints."""
    text = (Path(__file__).parents[2] / "docs" / "enrichment.md").read_text()
    (command,) = [line.strip() for line in text.splitlines() if line.strip().startswith("find . -type f")]
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.split()[0]


def write_manifest(folder: Path) -> None:
    names = ["1_Pooling/config.json", "config.json", "model.safetensors"]
    done = subprocess.run(["sha256sum", *names], cwd=folder, capture_output=True, text=True, check=True)
    (folder / MANIFEST).write_text(done.stdout)


def test_a_name_with_the_right_digest_leads_to_the_model(model: Path) -> None:
    assert locate(f"{model}#sha256={digest_by_the_shell(model)}") == str(model)


def test_a_model_with_another_digest_is_refused_and_both_are_named(model: Path) -> None:
    expected = digest_by_the_shell(model)
    (model / "config.json").write_text("{ }")
    with pytest.raises(ModelError, match=rf"its digest is {digest_by_the_shell(model)}, the name says {expected}"):
        locate(f"{model}#sha256={expected}")


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64])
def test_what_is_no_digest_is_refused(digest: str) -> None:
    with pytest.raises(ModelError, match="64 hex digits"):
        split_digest(f"model#sha256={digest}")


def test_a_hub_name_can_not_carry_a_digest_that_nobody_would_check() -> None:
    with pytest.raises(ModelError, match="not verified before they are loaded"):
        locate(f"some/model#sha256={'0' * 64}")


def test_a_manifest_beside_the_weights_is_verified(model: Path) -> None:
    write_manifest(model)
    assert locate(str(model)) == str(model)
    (model / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ModelError, match=r"is damaged or was changed: model\.safetensors has the digest"):
        locate(str(model))


def test_a_file_that_the_manifest_does_not_list_or_that_is_missing_is_refused(model: Path) -> None:
    write_manifest(model)
    (model / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"a file tokenizer\.json that its model\.sha256 does not list"):
        locate(str(model))
    (model / "tokenizer.json").unlink()
    (model / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"lacks 1_Pooling/config\.json"):
        locate(str(model))


def test_a_manifest_that_can_not_be_read_is_refused(model: Path) -> None:
    (model / MANIFEST).write_bytes(b"\xff no manifest\n")
    with pytest.raises(ModelError, match="not what sha256sum writes"):
        locate(str(model))


def test_nothing_is_hashed_when_nobody_knows_the_digest(model: Path) -> None:
    assert verify(model, "model", None) is None


def test_pickled_weights_are_refused_by_name_also_in_a_folder_below(model: Path) -> None:
    (model / "2_Dense").mkdir()
    (model / "2_Dense" / "pytorch_model.bin").touch()
    with pytest.raises(ModelError, match=r"beside 2_Dense/pytorch_model\.bin, whose format can hold code"):
        locate(str(model))
    (model / "2_Dense" / "model.safetensors").touch()
    (model / "openvino").mkdir()
    (model / "openvino" / "openvino_model.bin").touch()
    assert locate(str(model)) == str(model)


@pytest.mark.parametrize("path", ["../model.safetensors", "a/../../model.safetensors", "/etc/model.safetensors"])
def test_no_file_leads_out_of_the_model(path: str) -> None:
    with pytest.raises(ModelError, match="outside of its own folder"):
        check_weights([path], "model")


def test_a_model_on_s3_is_verified_after_it_was_fetched(
    settings: Settings, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(model)
    store = aws.object_store(settings)
    for path in model.rglob("*"):
        if path.is_file():
            obstore.put(store, f"models/small/{path.relative_to(model)}", path)
    name = f"s3://{settings.bucket}/models/small"
    right = digest_by_the_shell(model)
    folder = Path(locate(f"{name}#sha256={right}"))
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).digest() == hashlib.sha256(b"weights").digest()
    assert not (folder / "README.md").exists()
    with pytest.raises(ModelError, match="the name says 0000"):
        locate(f"{name}#sha256={'0' * 64}")
    # Without a digest the name to pin it by is logged.
    locate(name)
    assert f"#sha256={right}" in "".join(capsys.readouterr())
