"""The App Mesh API as its operators run it, asked with boto3; and a spec of every kind."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import boto3
from botocore.config import Config

from tests.support.gateway import free_port

DEADLINE_S: Final = 30.0
SECRET: Final = "0123456789abcdef"
KEYS: Final = "".join(
    f'[keys.{name}]\nsecret = "{SECRET}"\ntenant = "{tenant}"\nscopes = {scopes}\n'
    for name, tenant, scopes in (
        ("AKADMIN", "*", '["mesh:read", "mesh:write"]'),
        ("AKREADER", "*", '["mesh:read"]'),
        ("AKACME", "acme", '["mesh:read", "mesh:write"]'),
    )
)


class MeshApiProcess:
    """`headworks mesh serve` on a free port."""

    def __init__(self, folder: Path, *settings: str) -> None:
        keys = folder / "keys.toml"
        keys.write_text(KEYS)
        keys.chmod(0o600)
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = folder / "mesh.log"
        self._config = folder / "mesh.toml"
        lines = [
            "[api]",
            *([] if any("dynamodb" in line for line in settings) else [f'data_dir = "{folder / "data"}"']),
            f'signing_keys_file = "{keys}"',
            f'bind = "{self.url.removeprefix("http://")}"',
            *settings,
        ]
        self._config.write_text("\n".join(lines))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self._command(), stdout=log, stderr=log)
        ends_s = time.monotonic() + DEADLINE_S
        while not self._answers():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < ends_s, self.log.read_text()
            time.sleep(0.05)

    def run(self, *options: str) -> int:
        """Run it until it ends by itself; return the exit code."""
        with self.log.open("ab") as log:
            return subprocess.call([*self._command(), *options], stdout=log, stderr=log, timeout=DEADLINE_S)

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "commands.cli", "mesh", "serve", "--config", str(self._config)]

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.url, timeout=5).close()  # noqa: S310  # a server of ours
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def client(self, key: str = "AKADMIN", secret: str = SECRET) -> Any:
        """Return a boto3 client with a key."""
        return appmesh(self.url, key, secret)


def appmesh(url: str, key: str = "AKADMIN", secret: str = SECRET) -> Any:
    """Return a boto3 client of an App Mesh API."""
    return boto3.client(
        "appmesh",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        config=Config(retries={"total_max_attempts": 1}),
    )


@contextlib.contextmanager
def mesh_api(folder: Path, *settings: str) -> Iterator[MeshApiProcess]:
    """Run the API for one test."""
    api = MeshApiProcess(folder, *settings)
    api.start()
    try:
        yield api
    finally:
        if api.process is not None and api.process.poll() is None:
            api.process.kill()
            api.process.wait()


CLOUD_MAP: Final = {
    "namespaceName": "ns",
    "serviceName": "node",
    "attributes": [{"key": "stage", "value": "one"}],
    "ipPreference": "IPv4_ONLY",
}
PORT: Final = {"port": 8080, "protocol": "http"}
TARGETS: Final = {"weightedTargets": [{"virtualNode": "node", "weight": 1}]}
TO_SERVICE: Final = {"target": {"virtualService": {"virtualServiceName": "cart.local"}}}
TIMEOUT: Final = {"perRequest": {"unit": "s", "value": 20}, "idle": {"unit": "ms", "value": 5}}
MESH: Final = {"meshName": "shop"}
ROUTER: Final = MESH | {"virtualRouterName": "router"}
GATEWAY: Final = MESH | {"virtualGatewayName": "gateway"}
RESOURCES: Final[list[tuple[str, dict[str, str], list[dict[str, Any]]]]] = [
    ("mesh", MESH, [{"egressFilter": {"type": "DROP_ALL"}}, {"egressFilter": {"type": "ALLOW_ALL"}}]),
    (
        "virtual_node",
        MESH | {"virtualNodeName": "node"},
        [
            {"listeners": [{"portMapping": PORT}], "serviceDiscovery": {"dns": {"hostname": "n.local"}}},
            {
                "backends": [{"virtualService": {"virtualServiceName": "later.local"}}],
                "listeners": [{"portMapping": PORT, "timeout": {"http": TIMEOUT}}],
                "logging": {"accessLog": {"file": {"path": "/dev/stdout"}}},
                "serviceDiscovery": {"awsCloudMap": CLOUD_MAP},
            },
        ],
    ),
    (
        "virtual_router",
        ROUTER,
        [{"listeners": [{"portMapping": {"port": port, "protocol": "http"}}]} for port in (80, 81)],
    ),
    (
        "route",
        ROUTER | {"routeName": "route"},
        [
            {"httpRoute": {"match": {"prefix": "/"}, "action": TARGETS, "timeout": TIMEOUT}, "priority": 3},
            {"http2Route": {"match": {"prefix": "/2"}, "action": TARGETS}},
            {"grpcRoute": {"match": {"serviceName": "s"}, "action": TARGETS}},
            {"tcpRoute": {"action": TARGETS}},
        ],
    ),
    (
        "virtual_service",
        MESH | {"virtualServiceName": "cart.local"},
        [
            {"provider": {"virtualRouter": {"virtualRouterName": "router"}}},
            {"provider": {"virtualNode": {"virtualNodeName": "node"}}},
        ],
    ),
    (
        "virtual_gateway",
        GATEWAY,
        [{"listeners": [{"portMapping": {"port": port, "protocol": "http"}}]} for port in (9080, 9081)],
    ),
    (
        "gateway_route",
        GATEWAY | {"gatewayRouteName": "in"},
        [
            {"httpRoute": {"match": {"prefix": "/"}, "action": TO_SERVICE}},
            {"http2Route": {"match": {"prefix": "/"}, "action": TO_SERVICE}},
            {"grpcRoute": {"match": {"serviceName": "s"}, "action": TO_SERVICE}},
        ],
    ),
]
"""Each kind after what it refers to: its operations' name, its names, and the specs that it goes through."""
