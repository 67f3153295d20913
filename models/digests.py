"""Which files of a model are read, and whether they are the ones that somebody vouched for.

The digest of a model is the SHA-256 of what `sha256sum` prints for the files that are read, sorted by path
(docs/enrichment.md has the command). It may stand behind a model's name, as `#sha256=…`. A file `model.sha256` beside
the weights, as `sha256sum` writes it, is verified file by file.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from core.errors import ModelError

__all__ = ["MANIFEST", "check_weights", "is_read", "split_digest", "verify"]

MANIFEST = "model.sha256"

READ_SUFFIXES = frozenset({".json", ".model", ".safetensors", ".txt"})
# What libraries would load where there are no safetensors: pickles, which can hold code.
PICKLED = re.compile(r"pytorch_model.*\.bin")

_MARK = "#sha256="
_DIGEST = re.compile("[0-9a-f]{64}")
# Two blanks, or a blank and an asterisk for what was read as binary.
_LINE = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?(.+)")


def is_read(path: str) -> bool:
    """Tell whether a model's file is read at all: weights in safetensors, settings and vocabulary."""
    name = PurePosixPath(path)
    return name.suffix in READ_SUFFIXES or name.name == MANIFEST


def check_weights(paths: Iterable[str], name: str) -> None:
    """Check that the files of the model `name` hold weights, and in each folder with any some in safetensors.

    Raises ModelError that names the file, if there is one, that would have to be unpickled; or one whose path leads
    out of the model.
    """
    safe: set[PurePosixPath] = set()
    pickled: dict[PurePosixPath, str] = {}
    for path in paths:
        found = PurePosixPath(path)
        if found.is_absolute() or ".." in found.parts:
            raise ModelError(f'model "{name}" has a file "{path}" outside of its own folder')
        if found.suffix == ".safetensors":
            safe.add(found.parent)
        elif PICKLED.fullmatch(found.name):
            pickled.setdefault(found.parent, path)
    for folder, path in pickled.items():
        if folder not in safe:
            raise ModelError(
                f'model "{name}" has no *.safetensors weights beside {path}, whose format can hold code and is never'
                " loaded: convert it, or name another model"
            )
    if not safe:
        raise ModelError(f'model "{name}" has no *.safetensors weights; other formats are not loaded')


def split_digest(name: str) -> tuple[str, str | None]:
    """Part a model's name from the digest behind it; raises ModelError when that is not 64 hex digits."""
    bare, mark, digest = name.partition(_MARK)
    if mark and not _DIGEST.fullmatch(digest.lower()):
        raise ModelError(f'model "{bare}": "{digest}" is not a SHA-256 digest of 64 hex digits')
    return bare, digest.lower() if mark else None


def verify(folder: Path, name: str, digest: str | None, *, always: bool = False) -> str | None:
    """Return the digest of the model in `folder`; None when nobody knows what it should be, unless `always`.

    Raises ModelError when it is not `digest`, or when the manifest misses a file or says otherwise.
    """
    manifest = folder / MANIFEST
    if digest is None and not always and not manifest.is_file():
        return None
    found = {
        path.relative_to(folder).as_posix(): _sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST and is_read(path.name)
    }
    if manifest.is_file():
        _compare(found, _listed(manifest, name), name)
    whole = hashlib.sha256("".join(f"{found[path]}  {path}\n" for path in sorted(found)).encode()).hexdigest()
    if digest is not None and whole != digest:
        raise ModelError(
            f'model "{name}" is not the one that was named: its digest is {whole}, the name says {digest}. Do not use'
            " it unless you know why it has changed"
        )
    return whole


def _listed(manifest: Path, name: str) -> dict[str, str]:
    lines = [_LINE.fullmatch(line) for line in manifest.read_text("utf-8", "replace").splitlines() if line.strip()]
    listed = {line[2]: line[1] for line in lines if line}
    if len(listed) != len(lines):
        raise ModelError(f'model "{name}" has a {MANIFEST} that is not what sha256sum writes: write it anew')
    return listed


def _compare(found: dict[str, str], listed: dict[str, str], name: str) -> None:
    for path, digest in found.items():
        if path not in listed:
            raise ModelError(f'model "{name}" has a file {path} that its {MANIFEST} does not list')
        if digest != listed[path]:
            raise ModelError(
                f'model "{name}" is damaged or was changed: {path} has the digest {digest}, {MANIFEST} says'
                f" {listed[path]}"
            )
    if missing := sorted(path for path in listed.keys() - found.keys() if is_read(path)):
        raise ModelError(f'model "{name}" lacks {missing[0]}, which its {MANIFEST} lists')


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
