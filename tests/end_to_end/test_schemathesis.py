"""schemathesis asks what each published document says may be asked, and finds nothing that is not as it says.

All of its checks are on, and all its phases, in two runs. Data that a document allows may still be refused
with 412 (it has changed meanwhile) and 422 (it makes no sense), since a document cannot say what a cursor or
a signing request is. 400 may not, and 5xx may not.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from commands.demo.platform import SERVICES
from routing.gateway import openapi, routes_file
from routing.tenancy.identity import Kind
from routing.tenancy.registry import Status
from runtime import clock
from tests.support.feeds import group, write_local
from tests.support.platform import Running, platform

pytestmark = pytest.mark.end_to_end
ROUTES = routes_file.load(Path(__file__).parents[2] / "services/routes.toml")
VERSIONS = openapi.versions(ROUTES)
TENANT = "tenant-of-schemathesis"
"""Nobody else's, so that a key for every tenant does not come upon it first."""
SEED = 1
EXAMPLES = 6
SETTINGS = """
warnings = false
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "3xx", 401, 403, 404, 409, 412, 422, 429]
negative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 409, 413, 415, 422, 429, 431]
"""
THERE = """
[parameters]
"path.tenant" = "tenant-of-schemathesis"
"path.device" = "there"
"path.group" = "there"
"query.metric" = "temperature"
"""
"""Things that are there, so that more than 404 is seen of what reads and changes them."""
ENDING = ("remove-device", "erase-device", "remove-group")
"""What would end them; asked for everything else."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("platform")
    with platform(folder, requests_per_s=0) as started:
        yield started


def key_of(running: Running, tenant: str) -> str:
    """Return a key with all the scopes that routes ask for."""
    scopes = sorted({scope for route in ROUTES.routes for scope in route.scopes})
    with running.registry() as registry:
        registry.add_tenant(TENANT, "default", clock.unix_s())
        registry.set_tenant_status(TENANT, Status.ACTIVE, clock.unix_s())  # which may have been changed
        _, secret = registry.issue_key(tenant, "st", Kind.CALLER, clock.unix_s(), None, scopes=scopes)
    return secret


def put_things_there(running: Running, key: str) -> None:
    for kind in ("device", "group"):
        words = ("-H", f"X-API-Key: {key}", "-H", "Content-Type: application/json")
        url = f"{running.url}/v1/tenants/{TENANT}/{kind}s"
        status, body = running.curl(*words, "-d", json.dumps({kind: "there"}), url)
        assert status in {201, 409}, body  # another version of the document was here before
    readings = [
        msgspec.json.encode({"ts": clock.unix_ms() - index * 100_000, "metrics": {"temperature": index % 7}})
        for index in range(50)
    ]
    sent = group(1, readings, tenant=TENANT, device="there", received_at_ms=clock.unix_ms())
    write_local(running.folder / "local.db", sent)


def ask(running: Running, folder: Path, version: str, key: str, *words: str) -> None:
    """Fail with what schemathesis says, unless it finds nothing."""
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{running.url}/{version}/openapi.json"]
    command += ["--tls-verify", str(running.node.ca.ca_path), "-H", f"X-API-Key: {key}"]
    command += ["--checks", "all", "--seed", str(SEED), "--max-examples", str(EXAMPLES), "--workers", "1"]
    command += ["--continue-on-failure", "--no-color", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110, check=False)
    if done.returncode or "Fuzzing (in" not in done.stdout:
        pytest.fail(done.stdout + done.stderr, pytrace=False)


def failed(running: Running) -> list[str]:
    """Return the lines of the logs that tell of errors that should not be."""
    logs = [(running.folder / f"{name}.log").read_text() for name in ("api", *SERVICES)]
    return [line for log in logs for line in log.splitlines() if '"level": "error"' in line]


@pytest.mark.parametrize("version", VERSIONS)
def test_whatever_is_asked_is_answered_as_the_document_says(
    running: Running, tmp_path: Path, version: str
) -> None:
    (tmp_path / "schemathesis.toml").write_text(SETTINGS)
    ask(running, tmp_path, version, key_of(running, TENANT), "--phases", "fuzzing,stateful")
    assert not failed(running)


@pytest.mark.parametrize("version", VERSIONS)
def test_whatever_is_asked_of_things_that_are_there_is_answered_as_the_document_says(
    running: Running, tmp_path: Path, version: str
) -> None:
    (tmp_path / "schemathesis.toml").write_text(SETTINGS + THERE)
    ending = [word for name in ENDING for word in ("--exclude-operation-id", name)]
    put_things_there(running, key_of(running, TENANT))
    # Not in sequences: what one call makes, the next one must be of.
    ask(running, tmp_path, version, key_of(running, "*"), *ending, "--phases", "coverage,fuzzing")
    assert not failed(running)
