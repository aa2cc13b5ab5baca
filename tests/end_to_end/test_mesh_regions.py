"""Two regions: one's own first, the other when it has to be, and back, as the guide says."""

from __future__ import annotations

import asyncio
import collections
import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import mesh_documents as of
from tests.support.mesh_client import Load, loaded, session
from tests.support.upstream_servers import Server, servers
from tests.support.xds_rig import ControlPlane, acknowledged, control_plane, proxied

pytestmark = [pytest.mark.end_to_end]
FRONT = "mesh/shop/virtualNode/front"
HOME, AWAY = "eu-central-1", "eu-west-1"
CHECK = {
    "protocol": "http",
    "path": "/healthz",
    "healthyThreshold": 2,
    "unhealthyThreshold": 2,
    "intervalMillis": 5000,
    "timeoutMillis": 2000,
}
LOCALITY = {"prefer": "REGION", "failover": [AWAY], "healthyPercentMin": 80}
RETRIES: dict[str, Any] = {
    "retryPolicy": {
        "maxRetries": 3,
        "perRetryTimeout": {"unit": "s", "value": 2},
        "httpRetryEvents": ["server-error", "gateway-error"],
        "tcpRetryEvents": ["connection-error"],
    }
}


def at(server: Server, region: str, zone: str = "") -> dict[str, str]:
    return {"address": server.address, "region": region, "zone": zone or f"{region}a"}


def shop(folder: Path, **locality: object) -> Path:
    return of.written(
        folder / "mesh",
        of.mesh(),
        of.policy("near", locality={**LOCALITY, **locality}),
        of.node("front", 8080, backends=("cart.local",)),
        of.node("cart", 9080, healthCheck=CHECK),
        of.service("cart.local", router="cart"),
        of.router("cart"),
        of.route("cart", "all", {"cart": 1}, **RETRIES),
    )


async def share(load: Load, count: int) -> collections.Counter[str]:
    """Count who answers the next requests."""
    before = load.seen.copy()
    await load.more(count)
    seen = load.seen - before
    return collections.Counter({name: many for (status, name), many in seen.items() if status == 200})


async def until_share(load: Load, names: str, least: float, most: float) -> None:
    """Wait until these servers have a share of the requests between two bounds."""
    async with asyncio.timeout(60):
        while True:
            seen = await share(load, 200)
            got = sum(seen[name] for name in names) / max(1, sum(seen.values()))
            if least <= got <= most:
                return


async def test_a_region_fails_and_comes_back(tmp_path: Path) -> None:
    async with servers(6) as made, session() as asking:
        home, away = made[:4], made[4:]
        found = tmp_path / "endpoints.json"
        endpoints = [at(each, HOME) for each in home] + [at(each, AWAY) for each in away]
        found.write_text(json.dumps({"cart": endpoints}))
        words = ("--region", HOME, "--zone", f"{HOME}a")
        async with (
            control_plane(tmp_path, shop(tmp_path), "--endpoints", str(found)) as plane,
            proxied(tmp_path, plane, FRONT, *words) as envoy,
            loaded(asking, envoy.egress) as load,
        ):
            await until_share(load, "abcd", 1, 1)  # all well: nobody goes away
            for each in home[:2]:
                each.healthy = False  # half of them: 50 % of 80 % is 62.5 % of the requests
            await until_share(load, "ef", 0.25, 0.5)
            for each in home[2:]:
                await each.kill()  # the region is gone
            await until_share(load, "ef", 1, 1)
            for each in home[2:]:
                await each.start()
            for each in home[:2]:
                each.healthy = True
            await until_share(load, "abcd", 1, 1)  # and back
            assert load.failed() == {}


async def test_a_region_is_left_and_returned_to_by_its_operators(tmp_path: Path) -> None:
    async with servers(2) as (home, away), session() as asking:
        found = tmp_path / "endpoints.json"

        def placed(*endpoints: dict[str, str]) -> None:
            beside = found.with_suffix(".new")
            beside.write_text(json.dumps({"cart": endpoints}))
            beside.rename(found)

        placed(at(home, HOME), at(away, AWAY))
        words = ("--region", HOME, "--zone", f"{HOME}a")
        async with (
            control_plane(tmp_path, shop(tmp_path), "--endpoints", str(found)) as plane,
            proxied(tmp_path, plane, FRONT, *words) as envoy,
            loaded(asking, envoy.egress) as load,
        ):
            await until_share(load, "a", 1, 1)
            placed(at(away, AWAY))  # taken out, as for maintenance
            await until_share(load, "b", 1, 1)
            placed(at(home, HOME), at(away, AWAY))
            await until_share(load, "a", 1, 1)
            await plane.until(acknowledged)
            assert load.failed() == {}


@pytest.mark.parametrize(("prefer", "taken"), [("ZONE", "a"), ("REGION", "ab")])
async def test_a_zone_is_preferred_where_that_is_said(tmp_path: Path, prefer: str, taken: str) -> None:
    async with servers(3) as (one, two, away), session() as asking:
        found = tmp_path / "endpoints.json"
        endpoints = [at(one, HOME, f"{HOME}a"), at(two, HOME, f"{HOME}b"), at(away, AWAY)]
        found.write_text(json.dumps({"cart": endpoints}))
        words = ("--region", HOME, "--zone", f"{HOME}a")
        async with (
            control_plane(tmp_path, shop(tmp_path, prefer=prefer), "--endpoints", str(found)) as plane,
            proxied(tmp_path, plane, FRONT, *words) as envoy,
            loaded(asking, envoy.egress) as load,
        ):
            await started(plane)
            await until_share(load, taken, 1, 1)
            seen = await share(load, 300)
            assert set(seen) == set(taken)


async def started(plane: ControlPlane) -> None:
    await plane.until(acknowledged)
