"""Policies that come, change and go at a running Envoy: no request fails for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from tests.support import mesh_documents as of
from tests.support.limits_rig import Limits
from tests.support.mesh_client import Client, cart, loaded, session
from tests.support.mesh_rig import port
from tests.support.upstream_servers import servers
from tests.support.xds_peer import Files
from tests.support.xds_rig import acknowledged, control_plane, proxied

pytestmark = [pytest.mark.end_to_end]
FRONT = "mesh/shop/virtualNode/front"
ROUTE = "virtualRouter/cart/route/all"
SECOND = {"unit": "s", "value": 1}
KEY = ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()).public_key(), as_dict=True)
TOKENS: of.Document = {
    "issuer": "https://issuer.example",
    "audiences": ["shop"],
    "jwks": {"inline": json.dumps({"keys": [KEY]})},
}


def write(folder: Path, ports: dict[str, int], *policies: of.Document) -> Path:
    folder.mkdir(exist_ok=True)
    documents = [*cart(ports, of.route("cart", "all", {"v1": 1})), *policies]
    (folder / "new").write_text(json.dumps(documents))
    (folder / "new").rename(folder / "mesh.json")
    return folder


@pytest.mark.parametrize("variant", ["--delta", "--no-delta"])
async def test_policies_come_and_go_without_a_failed_request(tmp_path: Path, variant: str) -> None:
    async with servers(2) as (one, two), session() as asking:
        ports = {"v1": one.port, "v2": two.port}
        served = write(tmp_path / "mesh", ports)
        async with (
            control_plane(tmp_path, served) as plane,
            proxied(tmp_path, plane, FRONT, variant) as envoy,
            loaded(asking, envoy.egress) as load,
        ):

            async def until(holds: Callable[[aiohttp.ClientResponse], bool], **headers: str) -> None:
                async with asyncio.timeout(30):
                    while True:
                        sent = {"Host": "cart.local", **headers}
                        async with asking.get(envoy.egress, headers=sent) as answer:
                            if holds(answer):
                                break
                        await asyncio.sleep(0.02)
                await plane.until(acknowledged)
                await load.more(100)

            def limited(answer: aiohttp.ClientResponse) -> bool:
                return "X-RateLimit-Limit" in answer.headers

            bad: dict[str, Any] = {"Authorization": "Bearer a.b.c"}
            limit = {"requests": 1_000_000, "per": SECOND}
            await load.until("a")
            write(served, ports, of.policy("p", ROUTE, localRateLimit=limit, mirror={"virtualNode": "v2"}))
            await until(limited)
            assert two.seen > 0
            write(served, ports, of.policy("p", ROUTE, jwt={**TOKENS, "allowMissing": True}))
            await until(lambda answer: answer.status == 401, **bad)
            await until(lambda answer: not limited(answer))
            service = {"host": "127.0.0.1", "port": port()}
            shared = {"requests": 5, "per": SECOND, "onFailure": "ALLOW"}
            write(
                served,
                ports,
                of.policy("p", ROUTE, globalRateLimit=shared),
                of.policy("counting", rateLimitService=service),
            )
            await until(lambda answer: answer.status == 200, **bad)
            write(served, ports)
            await until(lambda answer: answer.status == 200)
            assert load.failed() == {}
            assert {row.state for row in await plane.until(acknowledged)} == {"ACKED"}


@pytest.mark.parametrize(("of_whom", "counted"), [("rateLimitService", True), ("virtualNode/thief", False)])
async def test_who_counts_is_known_by_its_identity_in_a_mesh_that_has_some(
    tmp_path: Path, of_whom: str, counted: bool
) -> None:
    files = Files(tmp_path / "files")
    issuer = tmp_path / "issuer.pem", tmp_path / "issuer.key"
    files.authority.cert_pem.write_to_path(issuer[0])
    files.authority.private_key_pem.write_to_path(issuer[1])
    issuer[1].chmod(0o600)
    words = ["--trust-domain", "shop.example", "--issuer-certificate", str(issuer[0])]
    own = files.client(f"spiffe://shop.example/mesh/shop/{of_whom}")
    async with Limits(tmp_path, *own) as limits, session() as asking:
        few = {"requests": 5, "per": {"unit": "s", "value": 3600}, "onFailure": "DENY"}
        policies = [
            limits.policy(),
            of.policy("few", ROUTE, globalRateLimit=few),
            of.policy("identity", security={"mutualTls": "STRICT"}),
        ]
        served = write(tmp_path / "mesh", {"v1": port(), "v2": port()}, *policies)
        async with (
            control_plane(tmp_path, served, *words, "--issuer-key", str(issuer[1])) as plane,
            proxied(tmp_path, plane, FRONT) as envoy,
        ):
            client = Client(asking, envoy.egress)
            seen = [(await client.ask())[0] for _ in range(10)]
    # Nobody listens behind: what is let through hears 503, as does what cannot be counted.
    assert (seen[:5], seen[5:]) == ([503] * 5, [429 if counted else 503] * 5)
