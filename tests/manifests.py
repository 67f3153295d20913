"""Reads manifests of Kubernetes, and checks what all our pods have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

__all__ = ["ROOT", "check_pod_security", "environment_file", "load"]

ROOT = Path(__file__).parents[1]


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def environment_file(path: Path) -> dict[str, str]:
    lines = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def check_pod_security(pod: dict[str, Any], container: dict[str, Any]) -> None:
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] == 65532
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["allowPrivilegeEscalation"] is False
    assert container["readOnlyRootFilesystem"] is True
    assert container["capabilities"] == {"drop": ["ALL"]}
