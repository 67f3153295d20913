"""Settings come from the environment and from `.env`, and a wrong one is refused by name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from core.errors import SettingsError
from core.records import Position
from core.settings import Settings, load_settings, parse_start


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.upper().startswith("PKM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    load_settings.cache_clear()
    yield
    load_settings.cache_clear()


def test_every_setting_has_a_working_default() -> None:
    settings = load_settings()
    assert settings.stream == "pkm-ingestion"
    assert settings.warehouse_uri == "s3://pkm-lakehouse/warehouse"
    assert settings.epoch == timedelta(seconds=5)
    assert settings.start_position == "trim-horizon"


def test_the_environment_goes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("PKM_STREAM=file\nPKM_BUCKET=from-file\n")
    monkeypatch.setenv("PKM_STREAM", "environment")
    settings = load_settings()
    assert (settings.stream, settings.bucket) == ("environment", "from-file")


def test_an_unknown_name_in_the_environment_is_refused_with_the_nearest_known_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PKM_BUKET", "x")
    with pytest.raises(SettingsError, match=r"PKM_BUKET is not a setting, did you mean PKM_BUCKET\?"):
        load_settings()


def test_an_unknown_name_in_the_file_is_refused_too(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("export PKM_SNAPSHOT_SECOND=7\n")
    with pytest.raises(SettingsError) as raised:
        load_settings()
    assert "PKM_SNAPSHOT_SECOND (in .env) is not a setting, did you mean PKM_SNAPSHOT_SECONDS?" in str(raised.value)


def test_a_name_like_no_other_is_refused_without_a_guess(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKM_QQQQ", "x")
    with pytest.raises(SettingsError, match="PKM_QQQQ is not a setting; docs"):
        load_settings()


def test_names_of_others_in_the_file_are_no_error(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("AWS_REGION=eu-west-1\nBYTEWAX_PROCESS_ID=1\nOTHER\nPKM_STREAM=mine\n")
    assert load_settings().stream == "mine"


def test_all_problems_are_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("PKM_SHARD=4\n")
    monkeypatch.setenv("PKM_START", "yesterday")
    monkeypatch.setenv("PKM_ENRICH", "all")
    with pytest.raises(SettingsError) as raised:
        load_settings()
    message = str(raised.value)
    assert "\n" not in message
    for part in ("PKM_SHARD ", "PKM_SHARDS?", "PKM_START='yesterday'", "PKM_ENRICH='all'"):
        assert part in message


def test_the_snapshot_key_is_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PKM_SNAPSHOT_KEY", "open sesame")
    assert "open sesame" not in repr(load_settings())


def test_settings_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_settings()
    monkeypatch.setenv("PKM_STREAM", "later")
    assert load_settings() is first


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trim-horizon", "trim-horizon"),
        ("latest", "latest"),
        ("timestamp:2026-11-23T08:00:00Z", datetime(2026, 11, 23, 8, tzinfo=UTC)),
        ("timestamp:2026-11-23T08:00:00", datetime(2026, 11, 23, 8, tzinfo=UTC)),
        ("timestamp:2026-11-23T08:00:00+02:00", datetime(2026, 11, 23, 6, tzinfo=UTC)),
        ("sequence:shardId-000000000001:4954698668313554428", Position("shardId-000000000001", 4954698668313554428)),
    ],
)
def test_a_start_position_is_read_in_utc(text: str, expected: object) -> None:
    assert parse_start(text) == expected


@pytest.mark.parametrize(
    "text", ["", "now", "timestamp:", "timestamp:soon", "sequence:7", "sequence:a:", "sequence:a:-7"]
)
def test_anything_else_is_no_start_position(text: str) -> None:
    with pytest.raises(ValueError, match="is not"):
        parse_start(text)


def test_a_settings_object_can_not_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().stream = "other"  # type: ignore[misc]


def test_the_documentation_lists_every_setting_with_its_default_and_meaning() -> None:
    listed = (Path(__file__).parents[2] / "docs" / "settings.md").read_text().splitlines()

    for name, field in Settings.model_fields.items():
        default = int(field.default) if isinstance(field.default, bool) else field.default
        shown = "" if default is None else f"`{default}`"
        assert f"| `PKM_{name.upper()}` | {shown} | {field.description} |" in listed
