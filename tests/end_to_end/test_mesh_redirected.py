"""A pod whose traffic iptables redirect to its Envoy: nobody in it knows of the mesh."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from routing.mesh.compile.proxy import Proxy
from tests.support import mesh_documents as of
from tests.support.mesh_rig import ENVOY, exported
from tests.support.redirected_pod import OTHER, PORT, WORLD

ROOT = Path(__file__).parents[2]
TRIAL = """
mount -t tmpfs none /mnt && ip link add here type veth peer name there && iptables -t nat -L && setpriv --help
"""


def is_allowed() -> bool:
    """Return whether this machine lets us make networks of our own."""
    if shutil.which("unshare") is None:
        return False
    trial = ["unshare", "--net", "--mount", "sh", "-c", TRIAL]
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif(
        not is_allowed(), reason="not possible here: network namespaces need root and iptables"
    ),
]


def said(folder: Path, egress: str) -> dict[str, Any]:
    """Return what is answered in and out of a pod."""
    at = {"serviceDiscovery": {"dns": {"hostname": WORLD}}}
    snapshot = of.snapshot(
        folder,
        of.mesh(egress),
        of.node("front", PORT, backends=("cart.local", "db.local", "many.local", "one.local")),
        of.node(
            "many",
            9000,
            more={"serviceDiscovery": {"dns": {"hostname": "many.test", "responseType": "ENDPOINTS"}}},
        ),
        of.node("one", 9000, more={"serviceDiscovery": {"dns": {"hostname": "one.test"}}}),
        of.router("many"),
        of.route("many", "all", {"many": 1}),
        of.service("many.local", router="many"),
        of.router("one"),
        of.route("one", "all", {"one": 1}),
        of.service("one.local", router="one"),
        of.node("cart", 9000, more=at),
        of.node("db", 5432, protocol="tcp", more=at),
        of.router("cart"),
        of.route("cart", "all", {"cart": 1}),
        of.service("cart.local", router="cart"),
        of.service("db.local", node="db"),
    )
    config = exported(folder, snapshot, "front", Proxy())
    readable = Path("/dev/shm") / f"{folder.name}-{os.getpid()}.json"  # noqa: S108  # Envoy runs as another user
    shutil.copy(config, readable)
    readable.chmod(0o644)
    command = ["unshare", "--net", "--mount", sys.executable, "-m", "tests.support.redirected_pod"]
    try:
        got = subprocess.run(
            [*command, str(ENVOY), str(readable)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
    finally:
        readable.unlink()
    assert got.returncode == 0, got.stderr
    answers: dict[str, Any] = json.loads(got.stdout)
    return answers


def test_a_pod_calls_its_backends_and_nobody_else(tmp_path: Path) -> None:
    answers = said(tmp_path, "DROP_ALL")
    assert answers["application"] == [200, f"127.0.0.1:{PORT} front.local", True]
    assert answers["backend"] == [200, f"{WORLD}:9000 cart.local", True]
    assert answers["backend by another address"] == [200, f"{WORLD}:9000 cart.local", True]
    assert answers["tcp backend"] == "banner of 5432"
    assert answers["no backend"][0] == 404
    assert not answers["no tcp backend"]
    assert answers["many"] == [WORLD, OTHER]
    assert len(answers["one"]) == 1
    assert answers["left"] == [OTHER]


def test_a_pod_that_may_call_everybody_does(tmp_path: Path) -> None:
    answers = said(tmp_path, "ALLOW_ALL")
    assert answers["backend"] == [200, f"{WORLD}:9000 cart.local", True]
    assert answers["no backend"] == [200, f"{WORLD}:9001 {WORLD}:9001", True]
    assert answers["tcp backend"] == "banner of 5432"
    assert answers["no tcp backend"] == "banner of 5433"
