"""Envoys that run what is exported of a mesh, before HTTP servers that stand for applications."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import msgspec

from routing.mesh.compile.messages import as_json
from routing.mesh.compile.node import compiled, static
from routing.mesh.compile.proxy import Address, Endpoint, Proxy
from routing.mesh.snapshot import MeshSnapshot
from tests.support.gateway import free_port

ENVOY = Path(sys.executable).with_name("envoy")
START_S = 20.0


_given: set[int] = set()


def port() -> int:
    """Return a free port that was not returned before: Envoys share a port without an error."""
    while (found := free_port()) in _given:
        pass
    _given.add(found)
    return found


class Envoy:
    """A running Envoy: its ports, and where its configuration and its log are."""

    def __init__(self, proxy: Proxy, config: Path) -> None:
        self.proxy = proxy
        self.config = config
        self.log = config.with_suffix(".log")

    @property
    def egress(self) -> str:
        return f"http://127.0.0.1:{self.proxy.egress_port}"

    @property
    def only_port(self) -> int:
        """The port of a node that has one."""
        (port,) = self.proxy.applications
        return port

    def url(self, port: int) -> str:
        return f"http://127.0.0.1:{port}"

    async def ready(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until it has what it needs, which is one round of health checks too."""
        until_s = time.monotonic() + START_S
        async with aiohttp.ClientSession() as session:
            while True:
                assert process.poll() is None, self.log.read_text()
                assert time.monotonic() < until_s, self.log.read_text()
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"http://127.0.0.1:{self.proxy.admin_port}/ready") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.05)

    async def counter(self, name: str) -> int:
        """Return a counter or gauge, 0 if there is none."""
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{self.proxy.admin_port}/stats") as answer,
        ):
            lines = (await answer.text()).splitlines()
        found = dict(line.split(": ", 1) for line in lines if ": " in line)
        return int(found.get(name, 0))


def exported(folder: Path, snapshot: MeshSnapshot, name: str, proxy: Proxy) -> Path:
    """Write the configuration of a node or a gateway."""
    of = snapshot.nodes.get(name) or snapshot.gateways[name]
    path = folder / f"{name}.json"
    path.write_bytes(msgspec.json.encode(as_json(static(compiled(snapshot, of, proxy), proxy))))
    return path


def validated(path: Path) -> None:
    """Ask Envoy itself whether a configuration is good."""
    said = subprocess.run(
        [str(ENVOY), "--mode", "validate", "-c", str(path), "--log-level", "warning"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert said.returncode == 0, said.stderr
    assert "deprecated" not in said.stderr.lower(), said.stderr


@contextlib.asynccontextmanager
async def envoys(
    folder: Path,
    snapshot: MeshSnapshot,
    applications: dict[str, dict[int, int]],
    *,
    endpoints: dict[str, tuple[Endpoint, ...]] | None = None,
    tcp: dict[str, int] | None = None,
    sds_socket: str = "",
) -> AsyncIterator[dict[str, Envoy]]:
    """Run the Envoys of nodes and gateways: by name, the application's port behind each listener."""
    made = {}
    with contextlib.ExitStack() as stack:
        started = []
        for name, ports in applications.items():
            proxy = Proxy(
                listen="127.0.0.1",
                ingress_port=port(),
                egress_port=port(),
                admin_port=port(),
                applications={port: Address("127.0.0.1", at) for port, at in ports.items()},
                tcp_backends={service: Address("127.0.0.1", port) for service, port in (tcp or {}).items()},
                endpoints=endpoints or {},
                sds_socket=sds_socket,
                stats=Address("127.0.0.1", port()),
            )
            made[name] = Envoy(proxy, exported(folder, snapshot, name, proxy))
            started.append((made[name], stack.enter_context(running(made[name]))))
        for envoy, process in started:
            await envoy.ready(process)
        yield made


@contextlib.contextmanager
def running(envoy: Envoy, *, drain_s: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    """Run an Envoy with its configuration until the block ends.

    After `drain_s`, ten minutes where nobody says it, connections of a listener that was replaced are cut.
    """
    command = [str(ENVOY), "-c", str(envoy.config), "--concurrency", "1", "--disable-hot-restart"]
    command += ["--log-level", "warning", "--drain-time-s", str(drain_s)]
    with envoy.log.open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
