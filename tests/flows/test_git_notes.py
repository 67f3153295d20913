"""A repository through the whole flow: its files are notes, and one that is deleted leaves every store of notes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.records import note_identity
from core.settings import Settings, load_settings
from git_servers import BareRepository, git_daemon
from pkm.running import run_flow
from producers.git.ingest import RepositorySummary, ingest
from producers.git.opening import repositories


def send(address: str, settings: Settings) -> RepositorySummary:
    (summary,) = [ingest(each, settings=settings) for each in repositories(address, settings=settings)]
    return summary


@pytest.mark.thorough
@pytest.mark.timeout(480)
def test_a_deleted_file_leaves_silver_search_and_metadata(
    lakehouse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variables = {"PKM_UNTIL_CAUGHT_UP": "1", "PKM_SNAPSHOT_SECONDS": "1", "PKM_ALLOW_PRIVATE_ADDRESSES": "1"}
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    load_settings.cache_clear()
    settings = load_settings()
    repository = BareRepository(tmp_path / "notes.git")
    repository.commit(
        {
            "people/curie.md": b"# Radium\n\nMarie Curie worked on radioactivity in Paris.\n",
            "recipes/bread.md": b"# Bread\n\nMix flour, water, salt and yeast; bake for an hour.\n",
            "gone.md": b"# Tides\n\nThe moon pulls at the sea twice a day.\n",
        }
    )
    with git_daemon(tmp_path) as server:
        address = f"{server}/notes.git"
        name = address.removeprefix("git://").removesuffix(".git")
        notes = {path: note_identity("git", f"{name}/{path}") for path in repository.files}
        assert send(address, settings).announced == 3
        run_flow(settings, flow="knowledge", workers=1)
        assert stores(lakehouse) == [set(notes.values())] * 3

        bread = repository.files["recipes/bread.md"]
        repository.commit(
            {
                "gone.md": None,
                "recipes/bread.md": None,
                "recipes/loaf.md": bread,
                "people/curie.md": b"# Polonium\n\nMarie Curie named polonium after Poland.\n",
            }
        )
        done = send(address, settings)
        assert (done.announced, done.deleted) == (2, 2)
        run_flow(settings, flow="knowledge", workers=1)

    loaf = note_identity("git", f"{name}/recipes/loaf.md")
    assert stores(lakehouse) == [{notes["people/curie.md"], loaf}] * 3
    titles = {row["note_id"]: row["title"] for row in lakehouse.table("silver.notes")}
    assert titles == {notes["people/curie.md"]: "Polonium", loaf: "Bread"}
    assert not [key for key in lakehouse.index_keys("source/git/") if notes["gone.md"] in key]
    bronze = [row["note_id"] for row in lakehouse.table("bronze.notes")]
    assert sorted(bronze) == sorted([*notes.values()] * 2 + [loaf])
    assert lakehouse.table("bronze.failures") == []


def stores(lakehouse: Any) -> list[set[str]]:
    """The notes of silver, of search, and of metadata."""
    return [
        {row["note_id"] for row in lakehouse.table("silver.notes")},
        {row["note_id"] for row in lakehouse.chunks()},
        {key.rpartition("/")[2] for key in lakehouse.index_keys("note/")},
    ]
