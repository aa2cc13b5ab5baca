"""What proxies count between two looks at them, or Prometheus has counted, of each call of a mesh."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any, Final

import aiohttp

from routing.mesh.graph.calls import Traffic
from routing.mesh.snapshot import MeshSnapshot
from routing.traffic.counts import Clusters, Counts, grown
from routing.traffic.exposition import Unreadable, clusters_in, vector_in

DEADLINE_S: Final = 10
P99: Final = 0.99
FILTER: Final = r"^cluster\.cds_egress_.*\.(upstream_rq_(.xx|time)|grpc\.[0-9]+)$"
OF_CALLS: Final = 'mesh="{mesh}",callee!=""'
BY: Final = "virtual_node, virtual_gateway, callee"
RATE: Final = "sum by ({by}) (rate(envoy_cluster_upstream_rq_xx{{{of}{more}}}[{seconds}s]))"
QUANTILE: Final = (
    "histogram_quantile(0.99, sum by (le, {by}) "
    "(rate(envoy_cluster_upstream_rq_time_bucket{{{of}}}[{seconds}s])))"
)


class Unread(Exception):
    """Nobody says what was counted; the text says why."""


async def from_proxies(
    snapshot: MeshSnapshot, addresses: Mapping[str, str], seconds: float
) -> dict[tuple[str, str], Traffic]:
    """Ask proxies twice, by the name of their node or gateway; raises Unread."""
    timeout = aiohttp.ClientTimeout(total=DEADLINE_S)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        before = await _read(session, addresses)
        await asyncio.sleep(seconds)
        after = await _read(session, addresses)
    made: dict[tuple[str, str], Traffic] = {}
    for caller in addresses:
        growth = grown({caller: before[caller]}, {caller: after[caller]})
        by_callee: dict[str, Counts] = {}
        for cluster, counts in growth.items():
            callee = callee_of(cluster, snapshot)
            if callee is not None:
                by_callee[callee] = by_callee.get(callee, Counts()) + counts
        for callee, counts in by_callee.items():
            traffic = Traffic(counts.requests / seconds, counts.failure_rate, counts.quantile_ms(P99))
            made[caller, f"virtualNode/{callee}"] = traffic
    return made


def callee_of(cluster: str, snapshot: MeshSnapshot) -> str | None:
    """Return the node whose cluster this is: of two names that begin alike, the longer one."""
    found = [
        name
        for name, node in snapshot.nodes.items()
        for listener in node.spec.listeners or ()
        if cluster.startswith(
            f"cds_egress_{snapshot.mesh.mesh_name}_{name}_{listener.port_mapping.protocol}_"
        )
    ]
    return max(found, key=len, default=None)


async def _read(session: aiohttp.ClientSession, addresses: Mapping[str, str]) -> dict[str, Clusters]:
    async def one(caller: str, address: str) -> tuple[str, Clusters]:
        text = await _got(session, f"http://{address}/stats/prometheus", {"filter": FILTER})
        try:
            return caller, clusters_in(text.decode())
        except (Unreadable, UnicodeDecodeError) as error:
            raise Unread(f"{caller} at {address}: {error}") from error

    return dict(await asyncio.gather(*[one(*pair) for pair in addresses.items()]))


async def from_prometheus(url: str, mesh: str, seconds: int) -> dict[tuple[str, str], Traffic]:
    """Ask Prometheus for the last seconds; raises Unread."""
    of = OF_CALLS.format(mesh=mesh.replace("\\", r"\\").replace('"', r"\""))
    failed = ',envoy_response_code_class="5"'
    queries = {
        "all": RATE.format(by=BY, of=of, more="", seconds=seconds),
        "failed": RATE.format(by=BY, of=of, more=failed, seconds=seconds),
        "p99": QUANTILE.format(by=BY, of=of, seconds=seconds),
    }
    found: dict[str, dict[tuple[str, str], float]] = {}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DEADLINE_S)) as session:
        for name, query in queries.items():
            body = await _got(session, f"{url.rstrip('/')}/api/v1/query", {"query": query})
            found[name] = _values(body)
    made = {}
    for pair, per_s in found["all"].items():
        part = found["failed"].get(pair, 0.0) / per_s if per_s else 0.0
        p99 = found["p99"].get(pair)
        made[pair] = Traffic(per_s, part, p99 if p99 is not None and math.isfinite(p99) else None)
    return made


def _values(body: bytes) -> dict[tuple[str, str], float]:
    try:
        found = vector_in(body)
    except Unreadable as error:
        raise Unread(str(error)) from error
    made = {}
    for labels, value in found:
        gateway, node = labels.get("virtual_gateway"), labels.get("virtual_node")
        caller = f"virtualGateway/{gateway}" if gateway else f"virtualNode/{node}"
        made[caller, f"virtualNode/{labels.get('callee')}"] = value
    return made


async def _got(session: aiohttp.ClientSession, url: str, params: dict[str, Any]) -> bytes:
    try:
        async with session.get(url, params=params) as answer:
            body = await answer.read()
            if answer.status != 200 and not body.startswith(b"{"):  # of HTTP
                raise Unread(f"{url}: status {answer.status}")
            return body
    except (aiohttp.ClientError, TimeoutError) as error:
        raise Unread(f"{url}: {str(error) or 'no answer'}") from error
