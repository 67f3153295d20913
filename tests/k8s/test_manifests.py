"""The manifests and the chart's values: valid, complete, and in step with the settings, the image and each other."""

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

BASE = ROOT / "k8s" / "base"
KUSTOMIZATIONS = [BASE, ROOT / "k8s" / "two-processes"]
MANIFESTS = sorted(path for path in BASE.glob("*.yaml") if path.name != "kustomization.yaml")

# What the chart 0.8.1 reads; a name that it does not know is silently without effect.
CHART_VALUES = {
    "image": {"repository", "tag", "pullPolicy"},
    "imagePullSecrets": None,
    "serviceAccount": {"create", "annotations", "name"},
    "podLabels": None,
    "podAnnotations": None,
    "podSecurityContext": None,
    "securityContext": None,
    "service": {"port"},
    "api": {"enabled", "port", "cacheport"},
    "resources": None,
    "nodeSelector": None,
    "tolerations": None,
    "affinity": None,
    "env": None,
    "envFromSecret": None,
    "envFromSecrets": None,
    "extraSecretMounts": None,
    "configuration": {
        "pythonFileName", "processesCount", "workersPerProcess", "keepAlive", "jobMode", "configMap", "recovery",
    },
    "customOtlpUrl": None,
    "podMonitor": {"enabled", "selector"},
}  # fmt: skip
# What the chart sets itself: the same name twice in a pod is refused or warned about.
CHART_ENVIRONMENT = {
    "BYTEWAX_PYTHON_FILE_PATH", "BYTEWAX_WORKDIR", "BYTEWAX_WORKERS_PER_PROCESS", "BYTEWAX_POD_NAME",
    "BYTEWAX_REPLICAS", "BYTEWAX_KEEP_CONTAINER_ALIVE", "BYTEWAX_HOSTFILE_PATH", "BYTEWAX_STATEFULSET_NAME",
    "BYTEWAX_DATAFLOW_API_PORT", "BYTEWAX_DATAFLOW_API_CACHE_PATH", "BYTEWAX_OTLP_URL", "PYTHONUNBUFFERED",
}  # fmt: skip


def manifest(kind: str) -> Any:
    (found,) = [document for document in map(load, MANIFESTS) if document["kind"] == kind]
    return found


def check_environment(variables: dict[str, str]) -> None:
    ours = {name.removeprefix("PKM_").lower(): value for name, value in variables.items() if name.startswith("PKM_")}
    assert set(ours) <= set(Settings.model_fields)
    settings = Settings.model_validate(ours)
    # bytewax.run refuses a recovery directory without both intervals, and our epoch is its snapshot interval.
    assert int(variables["BYTEWAX_SNAPSHOT_INTERVAL"]) == settings.snapshot_seconds
    assert int(variables["BYTEWAX_RECOVERY_BACKUP_INTERVAL"]) == 0
    assert variables["BYTEWAX_RECOVERY_DIRECTORY"].startswith("/dev/shm/")


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_manifest_is_valid(path: Path) -> None:
    kubernetes_validate.validate(load(path), kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("folder", KUSTOMIZATIONS, ids=lambda path: path.name)
def test_a_kustomization_names_only_what_exists_and_its_hostfile_fits_its_replicas(folder: Path) -> None:
    kustomization = load(folder / "kustomization.yaml")
    named = list(kustomization["resources"])
    for generator in kustomization["configMapGenerator"]:
        named += generator.get("files", []) + generator.get("envs", [])
    assert [name for name in named if not (folder / name).exists()] == []
    replicas = manifest("StatefulSet")["spec"]["replicas"]
    for entry in kustomization.get("replicas", []):
        assert entry["name"] == manifest("StatefulSet")["metadata"]["name"]
        replicas = entry["count"]
    hosts = (folder / "hostfile.txt").read_text().split()
    assert hosts == [f"pkm-{number}.pkm:9999" for number in range(replicas)]


def test_the_base_lists_every_manifest() -> None:
    assert sorted(load(BASE / "kustomization.yaml")["resources"]) == [path.name for path in MANIFESTS]


def test_everything_selects_the_pods_of_the_stateful_set_and_nothing_else() -> None:
    stateful_set = manifest("StatefulSet")["spec"]
    labels = stateful_set["template"]["metadata"]["labels"]
    assert len(labels) == 2
    assert stateful_set["selector"]["matchLabels"] == labels
    assert manifest("Service")["spec"]["selector"] == labels
    assert manifest("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    policy = manifest("NetworkPolicy")["spec"]
    assert policy["podSelector"]["matchLabels"] == labels
    assert policy["ingress"][0]["from"] == [{"podSelector": {"matchLabels": labels}}]


def test_the_pod_has_no_rights_no_disk_and_memory_for_its_state() -> None:
    pod = manifest("StatefulSet")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    check_pod_security(pod["securityContext"], container["securityContext"])
    assert pod["automountServiceAccountToken"] is False
    assert pod["serviceAccountName"] == manifest("ServiceAccount")["metadata"]["name"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    memory = volumes["memory"]["emptyDir"]
    assert memory["medium"] == "Memory"
    assert memory["sizeLimit"]
    writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
    assert writable == ["/dev/shm"]


def test_processes_find_each_other_before_they_are_ready() -> None:
    spec = manifest("Service")["spec"]
    stateful_set = manifest("StatefulSet")
    assert spec["clusterIP"] == "None"
    assert spec["publishNotReadyAddresses"] is True
    assert stateful_set["spec"]["serviceName"] == manifest("Service")["metadata"]["name"]
    assert stateful_set["spec"]["podManagementPolicy"] == "Parallel"
    (container,) = stateful_set["spec"]["template"]["spec"]["containers"]
    variables = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert variables["BYTEWAX_STATEFULSET_NAME"] == stateful_set["metadata"]["name"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert variables["BYTEWAX_HOSTFILE_PATH"] == f"{mounts['hostfile']}/hostfile.txt"


def test_generated_names_are_those_that_the_pod_uses() -> None:
    generated = {entry["name"] for entry in load(BASE / "kustomization.yaml")["configMapGenerator"]}
    pod = manifest("StatefulSet")["spec"]["template"]["spec"]
    used = {source["configMapRef"]["name"] for source in pod["containers"][0]["envFrom"] if "configMapRef" in source}
    used |= {volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume}
    assert used == generated


def test_probes_ask_the_server_that_the_settings_switch_on() -> None:
    (container,) = manifest("StatefulSet")["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"process": 9999, "metrics": 3030}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"] == {"path": "/metrics", "port": "metrics"}
    assert environment_file(BASE / "settings.env")["BYTEWAX_DATAFLOW_API_ENABLED"] == "true"


def test_the_settings_are_known_and_fit_the_engine() -> None:
    check_environment(environment_file(BASE / "settings.env"))
    check_environment(load(ROOT / "k8s" / "waxctl-values.yaml")["env"])


def test_the_chart_knows_every_value() -> None:
    values = load(ROOT / "k8s" / "waxctl-values.yaml")
    assert set(values) <= set(CHART_VALUES)
    for name, known in CHART_VALUES.items():
        if known is not None:
            assert set(values.get(name, {})) <= known, name


def test_the_chart_runs_our_file_without_its_volume_and_its_web_server() -> None:
    values = load(ROOT / "k8s" / "waxctl-values.yaml")
    configuration = values["configuration"]
    assert (ROOT / "k8s" / configuration["pythonFileName"]).is_file()
    assert configuration["recovery"]["enabled"] is False
    assert values["api"]["enabled"] is False
    check_pod_security(values["podSecurityContext"], values["securityContext"])
    # The chart prints each value between quotes; anything but text would be printed as Go prints it.
    assert all(isinstance(value, str) for value in values["env"].values())
    assert not CHART_ENVIRONMENT & set(values["env"])


def test_both_ways_deploy_the_version_of_this_tree() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    values = load(ROOT / "k8s" / "waxctl-values.yaml")
    (image,) = load(BASE / "kustomization.yaml")["images"]
    assert values["image"]["tag"] == image["newTag"] == version
    assert values["image"]["repository"] == image["newName"]
    (container,) = manifest("StatefulSet")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == image["name"]


def test_the_guide_shows_the_files_that_exist() -> None:
    guide = (ROOT / "docs" / "deploy.md").read_text()
    named = set(re.findall(r"\b(?:k8s|docker)/[\w./-]+\w", guide))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_policy_names_single_actions_on_what_the_settings_name() -> None:
    guide = (ROOT / "docs" / "deploy.md").read_text()
    (block,) = re.findall(r"```json\n(.*?)```", guide[: guide.index("## The HTTP service")], re.DOTALL)
    variables = environment_file(BASE / "settings.env")
    for statement in json.loads(block)["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        resources = statement["Resource"] if isinstance(statement["Resource"], list) else [statement["Resource"]]
        assert not [action for action in actions if "*" in action]
        for resource in resources:
            service, name = resource.split(":")[2], resource.split(":", 5)[5]
            assert service in {"kinesis", "s3", "glue"}
            if service == "kinesis":
                assert name == f"stream/{variables['PKM_STREAM']}"
            elif service == "s3":
                assert name.split("/")[0] == variables["PKM_BUCKET"]
