"""Fixtures for the whole suite: one local AWS per run, and fresh names in it for each test."""

from __future__ import annotations

import os
import urllib.request
import uuid
from collections.abc import Iterator

import pytest

for _name in [
    name for name in os.environ if name.startswith(("AWS_", "PKM_", "BYTEWAX_")) and name != "AWS_CA_BUNDLE"
]:
    del os.environ[_name]
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "2")
os.environ["HF_HUB_OFFLINE"] = "1"

from core import aws
from core.settings import Settings, load_settings
from core.telemetry import quiet_libraries
from pkm.stack import local_aws

quiet_libraries()


@pytest.fixture(scope="session")
def aws_environment() -> Iterator[dict[str, str]]:
    """Variables of a local AWS that lives as long as the test run."""
    with local_aws() as variables:
        yield variables


@pytest.fixture
def settings(aws_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    """Settings with a bucket of its own (created) and names of its own for stream and catalog tables."""
    # Glue's namespaces are one per account, so each test starts from an empty account.
    reset = urllib.request.Request(f"{aws_environment['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset, timeout=30).close()
    name = uuid.uuid4().hex[:12]
    for key, value in {
        **aws_environment,
        "PKM_BUCKET": f"bucket-{name}",
        "PKM_STREAM": f"stream-{name}",
        "PKM_RECOVERY_DIR": f"/dev/shm/pkm-test-{name}",
    }.items():
        monkeypatch.setenv(key, value)
    load_settings.cache_clear()
    loaded = load_settings()
    aws.s3_client(loaded).create_bucket(Bucket=loaded.bucket)
    yield loaded
    load_settings.cache_clear()
