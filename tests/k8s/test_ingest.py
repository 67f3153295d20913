"""The manifests of the HTTP service: valid, complete, and in step with the service, the settings and each other."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from core.settings import Settings
from manifests import ROOT, check_pod_security, environment_file, load
from producers.service.health import CHECK_SECONDS
from producers.service.server import FINISH_SECONDS

INGEST = ROOT / "k8s" / "ingest"
MANIFESTS = sorted(path for path in INGEST.glob("*.yaml") if path.name != "kustomization.yaml")


def manifest(kind: str) -> Any:
    (found,) = [document for document in map(load, MANIFESTS) if document["kind"] == kind]
    return found


def pod() -> Any:
    return manifest("Deployment")["spec"]["template"]["spec"]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_manifest_is_valid_and_listed(path: Path) -> None:
    kubernetes_validate.validate(load(path), kubernetes_validate.latest_version(), strict=True)
    assert path.name in load(INGEST / "kustomization.yaml")["resources"]


def test_the_kustomization_names_only_what_exists_and_the_version_of_this_tree() -> None:
    kustomization = load(INGEST / "kustomization.yaml")
    (generated,) = kustomization["configMapGenerator"]
    assert [name for name in (*kustomization["resources"], *generated["envs"]) if not (INGEST / name).exists()] == []
    (image,) = kustomization["images"]
    assert image["newTag"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert image["name"] == pod()["containers"][0]["image"]
    used = [
        source["configMapRef"]["name"] for source in pod()["containers"][0]["envFrom"] if "configMapRef" in source
    ]
    assert used == [generated["name"]]


def test_everything_selects_the_pods_of_the_deployment_and_not_those_of_the_flow() -> None:
    deployment = manifest("Deployment")["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert manifest("Service")["spec"]["selector"] == labels
    assert manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    flow = load(ROOT / "k8s" / "base" / "statefulset.yaml")["spec"]["selector"]["matchLabels"]
    assert labels != flow
    assert set(labels) == set(flow)


def test_the_pod_has_no_rights_no_disk_and_only_memory_to_write_to() -> None:
    (container,) = pod()["containers"]
    check_pod_security(pod()["securityContext"], container["securityContext"])
    assert pod()["automountServiceAccountToken"] is False
    assert pod()["serviceAccountName"] == manifest("ServiceAccount")["metadata"]["name"]
    assert [volume["emptyDir"]["medium"] for volume in pod()["volumes"]] == ["Memory"]
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/dev/shm"]


def test_tokens_come_from_a_secret_that_has_to_be_there() -> None:
    (container,) = pod()["containers"]
    (secret,) = [source["secretRef"] for source in container["envFrom"] if "secretRef" in source]
    assert not secret.get("optional", False)
    settings = environment_file(INGEST / "settings.env")
    assert not [name for name in settings if "TOKEN" in name]
    ours = {name.removeprefix("PKM_").lower(): value for name, value in settings.items() if name.startswith("PKM_")}
    assert set(ours) <= set(Settings.model_fields)
    flow = environment_file(ROOT / "k8s" / "base" / "settings.env")
    assert {name: settings[name] for name in ("PKM_STREAM", "PKM_BUCKET")}.items() <= flow.items()
    guide = (ROOT / "docs" / "deploy.md").read_text()
    assert f"kubectl create secret generic {secret['name']} --from-literal=PKM_SERVE_TOKENS=" in guide


def test_ports_probes_and_times_are_those_of_the_service() -> None:
    (container,) = pod()["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert container["args"][:3] == ["pkm", "ingest", "serve"]
    assert {f"--port={ports['http']}", f"--metrics-port={ports['metrics']}"} <= set(container["args"])
    assert [rule["ports"] for rule in manifest("NetworkPolicy")["spec"]["ingress"]] == [
        [{"port": ports["http"]}],
        [{"port": ports["metrics"]}],
    ]
    (port,) = manifest("Service")["spec"]["ports"]
    assert port["targetPort"] == "http"
    assert container["readinessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    assert container["readinessProbe"]["timeoutSeconds"] > CHECK_SECONDS
    for probe in ("startupProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/healthz/live", "port": "http"}
    pause = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pause + FINISH_SECONDS + 2 < pod()["terminationGracePeriodSeconds"]


def test_its_policy_names_single_actions_on_what_the_settings_name() -> None:
    guide = (ROOT / "docs" / "deploy.md").read_text()
    section = guide[guide.index("## The HTTP service") :]
    (block,) = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    variables = environment_file(INGEST / "settings.env")
    names = {"kinesis": f"stream/{variables['PKM_STREAM']}", "s3": variables["PKM_BUCKET"], "glue": ""}
    for statement in json.loads(block)["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        resources = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
        assert not [action for action in actions if "*" in action]
        for resource in resources:
            service, name = resource.split(":")[2], resource.split(":", 5)[5]
            assert name.startswith(names[service])
