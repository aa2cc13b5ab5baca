"""A large mesh: what one endpoint's change costs the control plane, and when an Envoy has it.

    python -m bench.mesh [--nodes N] [--endpoints E] [--calls C] [--proxies P] [--changes K] [--json]

The mesh has N virtual nodes of E endpoints, each of which calls C services. `headworks mesh xds` serves it on
core 0 to P proxies, of as many nodes: delta streams of core 1 that acknowledge all they are sent, and a real
Envoy before them all. A change replaces one endpoint in the file of endpoints. CPU is that of all threads of
the control plane, less what it takes while nothing changes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import grpc
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest
from rich.console import Console
from rich.table import Table

from loadtests.node import free_port
from routing.xds.snapshot import CLUSTERS, ENDPOINTS, LISTENERS, ROUTES
from routing.xds.status import Unreachable, fetched

CORES: Final = "0", "1"
IDLE_S: Final = 5.0
DEADLINE_S: Final = 120.0
CALLED: Final = "node-00001"
"""The node whose endpoints change: node-00000 calls it, and C - 1 others do."""


def mesh(nodes: int, calls: int) -> Iterator[dict[str, Any]]:
    """Yield the resources: each node calls the ones after it, in a ring, through a router of its own."""
    yield {"meshName": "large", "spec": {"egressFilter": {"type": "DROP_ALL"}}}
    names = [f"node-{number:05}" for number in range(nodes)]
    port = {"portMapping": {"port": 8080, "protocol": "http"}}
    for number, name in enumerate(names):
        called = [f"{names[(number + step) % nodes]}.local" for step in range(1, calls + 1)]
        backends = [{"virtualService": {"virtualServiceName": each}} for each in called]
        found = {"dns": {"hostname": f"{name}.local"}}
        spec = {"listeners": [port], "backends": backends, "serviceDiscovery": found}
        yield {"meshName": "large", "virtualNodeName": name, "spec": spec}
        router = {"virtualRouter": {"virtualRouterName": name}}
        yield {"meshName": "large", "virtualServiceName": f"{name}.local", "spec": {"provider": router}}
        yield {"meshName": "large", "virtualRouterName": name, "spec": {"listeners": [port]}}
        action = {"weightedTargets": [{"virtualNode": name, "weight": 1}]}
        route = {"httpRoute": {"match": {"prefix": "/"}, "action": action}}
        yield {"meshName": "large", "virtualRouterName": name, "routeName": "all", "spec": route}


def endpoints(nodes: int, each: int, change: int) -> dict[str, list[str]]:
    """Return the endpoints of all nodes after so many changes of one."""
    made = {
        f"node-{number:05}": [f"10.{number >> 8}.{number & 255}.{at + 1}" for at in range(each)]
        for number in range(nodes)
    }
    made[CALLED][0] = _changed(change)
    return made


def _changed(change: int) -> str:
    return f"10.200.0.{change + 1}"


def written(path: Path, document: Any) -> None:
    """Write a file whole."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(document))
    beside.rename(path)


def cpu_s(process: int) -> float:
    """Return the CPU of all threads of a process."""
    tasks = Path(f"/proc/{process}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def memory_mb(process: int) -> float:
    """Return the memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _write_output(path: Path, command: list[str]) -> None:
    path.write_bytes(subprocess.check_output(command))


async def proxy(address: str, node: str, metadata: dict[str, Any]) -> None:
    """Ask as an Envoy does, for as long as it is not cancelled."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 64 << 20)]
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        call = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources()
        of: dict[str, Any] = {"id": node, "metadata": metadata}
        await call.write(DeltaDiscoveryRequest(type_url=CLUSTERS, node=of))
        await call.write(DeltaDiscoveryRequest(type_url=LISTENERS))
        while True:
            said = await call.read()
            if said.type_url == CLUSTERS:
                names = [each.name for each in said.resources]
                await call.write(DeltaDiscoveryRequest(type_url=ENDPOINTS, resource_names_subscribe=names))
            elif said.type_url == LISTENERS:
                routes = f"rds_egress_large_{node.rpartition('/')[2]}"
                await call.write(DeltaDiscoveryRequest(type_url=ROUTES, resource_names_subscribe=[routes]))
            await call.write(DeltaDiscoveryRequest(type_url=said.type_url, response_nonce=said.nonce))


@contextlib.contextmanager
def running(core: str, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server on a core."""
    process = subprocess.Popen(["taskset", "-c", core, *command], stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


@contextlib.asynccontextmanager
async def fleet(address: str, proxies: int, nodes: int, metadata: dict[str, Any]) -> AsyncIterator[None]:
    """Hold the streams of proxies."""
    async with asyncio.TaskGroup() as tasks:
        held = [
            tasks.create_task(proxy(address, f"mesh/large/virtualNode/node-{number % nodes:05}", metadata))
            for number in range(1, proxies + 1)
        ]
        yield
        for each in held:
            each.cancel()


async def settled(socket: Path, proxies: int) -> None:
    """Wait until so many proxies have acknowledged all that they were sent."""
    ends_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < ends_s:
        with contextlib.suppress(Unreachable):
            rows = await fetched(socket)
            if len(rows) == 4 * proxies and all(row.state == "ACKED" for row in rows):
                return
        await asyncio.sleep(0.5)
    raise TimeoutError(f"not all of {proxies} proxies have what they asked for")


async def has(asking: aiohttp.ClientSession, admin: int, address: str) -> None:
    """Wait until an Envoy has an endpoint."""
    ends_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < ends_s:
        with contextlib.suppress(aiohttp.ClientError):
            async with asking.get(f"http://127.0.0.1:{admin}/clusters") as answer:
                if f"{address}:8080" in await answer.text():
                    return
        await asyncio.sleep(0.005)
    raise TimeoutError(f"no {address} after {DEADLINE_S:g} s")


async def measured(folder: Path, terms: argparse.Namespace) -> dict[str, float]:
    """Return the figures."""
    written(folder / "mesh.json", list(mesh(terms.nodes, terms.calls)))
    found = folder.parent / "endpoints.json"
    written(found, endpoints(terms.nodes, terms.endpoints, 0))
    headworks = Path(sys.executable).with_name("headworks")
    port, admin, socket = free_port(), free_port(), folder.parent / "status.sock"
    command = [str(headworks), "mesh", "xds", str(folder), "--endpoints", str(found)]
    command += ["--bind", f"127.0.0.1:{port}", "--status-socket", str(socket)]
    own = ["mesh", "bootstrap", "mesh/large/virtualNode/node-00000", "--server", f"127.0.0.1:{port}"]
    own += ["--admin-port", str(admin), "--egress-port", str(free_port()), "--ingress-port", str(free_port())]
    config = folder.parent / "envoy.json"
    await asyncio.to_thread(_write_output, config, [str(headworks), *own])
    metadata = json.loads(config.read_text())["node"]["metadata"]
    envoy = [str(Path(sys.executable).with_name("envoy")), "-c", str(config), "--disable-hot-restart"]
    async with aiohttp.ClientSession() as asking:
        with running(CORES[0], *command) as plane:
            await settled(socket, 0)
            with running(CORES[1], *envoy, "--log-level", "off"):
                began_s = time.monotonic()
                async with fleet(f"127.0.0.1:{port}", terms.proxies, terms.nodes, metadata):
                    await settled(socket, terms.proxies + 1)
                    ready_s = time.monotonic() - began_s
                    await has(asking, admin, _changed(0))
                    before = cpu_s(plane.pid)
                    await asyncio.sleep(IDLE_S)
                    idle = (cpu_s(plane.pid) - before) / IDLE_S
                    took, cost = [], []
                    for change in range(1, terms.changes + 1):
                        document = endpoints(terms.nodes, terms.endpoints, change)
                        before, began_s = cpu_s(plane.pid), time.monotonic()
                        written(found, document)
                        await has(asking, admin, _changed(change))
                        took.append(time.monotonic() - began_s)
                        await asyncio.sleep(1)  # until the last proxy has acknowledged it
                        spent_s = time.monotonic() - began_s
                        cost.append(cpu_s(plane.pid) - before - idle * spent_s)
                    memory = memory_mb(plane.pid)
    return {
        "ready_s": ready_s,
        "idle_cpu_percent": idle * 100,
        "memory_mb": memory,
        "reach_s": statistics.median(took),
        "reach_max_s": max(took),
        "cpu_ms": statistics.median(cost) * 1e3,
        "cpu_max_ms": max(cost) * 1e3,
    }


def main() -> None:
    """Measure, and print a table or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=1000, help="virtual nodes")
    parser.add_argument("--endpoints", type=int, default=10, help="endpoints of each")
    parser.add_argument("--calls", type=int, default=10, help="services that each calls")
    parser.add_argument("--proxies", type=int, default=1000, help="streams that are held")
    parser.add_argument("--changes", type=int, default=10, help="changes that are measured")
    parser.add_argument("--json", action="store_true", help="print JSON")
    terms = parser.parse_args()
    os.sched_setaffinity(0, {int(CORES[1])})
    with tempfile.TemporaryDirectory(prefix="headworks-mesh-") as name:
        folder = Path(name) / "mesh"
        folder.mkdir()
        figures = asyncio.run(measured(folder, terms))
    if terms.json:
        print(json.dumps(figures))
        return
    table = Table("figure", "value", title=f"{terms.nodes} nodes of {terms.endpoints} endpoints")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.3f}" if value < 10 else f"{value:,.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
