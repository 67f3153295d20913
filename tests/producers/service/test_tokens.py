"""Bearer tokens: read without quoting them, known by their digests, refused without a hint."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from core.errors import SettingsError
from producers.service.problems import ProblemError
from producers.service.tokens import Tokens

OLD, NEW, OTHER = "old" * 10, "new" * 10, "other" * 6
TOKENS = Tokens.read(SecretStr(f"agents:{OLD}, agents:{NEW},people:{OTHER}"))


def test_a_name_has_two_tokens_while_they_are_rotated() -> None:
    assert TOKENS.name_of(f"Bearer {OLD}") == TOKENS.name_of(f"bearer  {NEW}") == "agents"
    assert TOKENS.name_of(f"Bearer {OTHER}") == "people"


@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", OLD, f"Basic {OLD}", f"Bearer {OLD}x", f"Bearer {OLD} {NEW}", "Bearer \xff"],
)
def test_anything_else_is_nobody(header: str | None) -> None:
    with pytest.raises(ProblemError, match="Unauthorized"):
        TOKENS.name_of(header)


@pytest.mark.parametrize(
    "setting",
    ["", OLD, f":{OLD}", f"Agents:{OLD}", f"agents:{OLD},", "agents:short", f"a:{OLD},b:{OLD}", f"a:{OLD} b"],
)
def test_a_setting_that_can_not_be_read_is_told_without_a_token(setting: str) -> None:
    with pytest.raises(SettingsError, match="PKM_SERVE_TOKENS") as error:
        Tokens.read(SecretStr(setting))
    assert OLD not in str(error.value)
    assert "short" not in str(error.value).replace("shorten", "")


def test_no_token_is_kept() -> None:
    assert OLD not in repr(TOKENS)
