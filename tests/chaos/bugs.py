"""Bugs to plant in the child, which the suite must find."""

from __future__ import annotations

__all__ = ["BUGS", "plant"]

BUGS: dict[str, str] = {}


def plant(name: str) -> None:
    """Plant one bug by its name; none by an empty name."""
    if not name:
        return
    globals()[f"_plant_{name}"]()
