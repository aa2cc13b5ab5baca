"""Nodes that call each other over mutual TLS, with certificates from files and from a discovery service."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import pytest
import trustme

from tests.support import mesh_documents as of
from tests.support.mesh_client import ONCE, Client, cart, session
from tests.support.mesh_rig import envoys, port
from tests.support.secret_service import certificate, secret_service, trust
from tests.support.upstream_servers import servers

pytestmark = [pytest.mark.end_to_end]


@pytest.mark.parametrize("mode", ["STRICT", "PERMISSIVE"])
async def test_nodes_call_each_other_over_mutual_tls(tmp_path: Path, mode: str) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name, of_ca in {"front": authority, "v1": authority, "odd": stranger}.items():
        issued = of_ca.issue_cert(f"{name}.shop.local")
        issued.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        issued.private_key_pem.write_to_path(tmp_path / f"{name}.key")
    at = port()

    def of_files(name: str) -> of.Document:
        files = {
            "certificateChain": str(tmp_path / f"{name}.pem"),
            "privateKey": str(tmp_path / f"{name}.key"),
        }
        return {"file": files}

    def validation(*names: str) -> of.Document:
        trust = {"file": {"certificateChain": str(tmp_path / "ca.pem")}}
        return {"trust": trust, "subjectAlternativeNames": {"match": {"exact": names}}}

    def calling(caller: str, certified: str, callee: str) -> of.Document:
        tls = {"certificate": of_files(certified), "validation": validation(callee)}
        more = {"backendDefaults": {"clientPolicy": {"tls": tls}}}
        return of.node(caller, 8080, backends=("cart.local",), more=more)

    asked = {"mode": mode, "certificate": of_files("v1"), "validation": validation("front.shop.local")}
    snapshot = of.snapshot(
        tmp_path,
        *cart({"v1": at}, of.route("cart", "all", {"v1": 1}, **ONCE), tls=asked)[2:],
        of.mesh(),
        calling("front", "front", "v1.shop.local"),
        calling("misled", "front", "v2.shop.local"),
        calling("unknown", "odd", "v1.shop.local"),
        calling("other", "v1", "v1.shop.local"),
        of.node("plain", 8080, backends=("cart.local",)),
    )
    callers = {
        "front": 200,
        "misled": 503,
        "unknown": 503,
        "other": 503,
        "plain": 200 if mode == "PERMISSIVE" else 503,
    }
    async with servers(1) as (one,), session() as asking:
        applications: dict[str, dict[int, int]] = {name: {} for name in callers} | {"v1": {at: one.port}}
        async with envoys(tmp_path, snapshot, applications) as running:
            got = {name: (await Client(asking, running[name].egress).ask())[0] for name in callers}
            encrypted = await running["front"].counter(f"cluster.cds_egress_shop_v1_http_{at}.ssl.handshake")
    assert got == callers
    assert encrypted == 1


async def test_certificates_of_a_discovery_service_are_replaced_while_requests_flow(tmp_path: Path) -> None:
    old, new = trustme.CA(), trustme.CA()
    front, v1 = "spiffe://shop/front", "spiffe://shop/v1"
    at = port()

    def tls(own: str, peer: str) -> of.Document:
        names = {"match": {"exact": [peer]}}
        validation = {"trust": {"sds": {"secretName": "spiffe://shop"}}, "subjectAlternativeNames": names}
        return {"certificate": {"sds": {"secretName": own}}, "validation": validation}

    more = {"backendDefaults": {"clientPolicy": {"tls": tls(front, v1)}}}
    documents = cart(
        {"v1": at}, of.route("cart", "all", {"v1": 1}, **ONCE), tls={"mode": "STRICT", **tls(v1, front)}
    )
    documents[1] = of.node("front", 8080, backends=("cart.local",), more=more)
    snapshot = of.snapshot(tmp_path, *documents)
    socket = Path(tempfile.mkdtemp(dir="/tmp")) / "agent.sock"  # a socket's path is short
    async with servers(1) as (one,), session() as asking, secret_service(socket) as secrets:
        await secrets.put(
            certificate(front, old, front), certificate(v1, old, v1), trust("spiffe://shop", old)
        )
        applications: dict[str, dict[int, int]] = {"front": {}, "v1": {at: one.port}}
        async with envoys(tmp_path, snapshot, applications, sds_socket=str(socket)) as running:
            client = Client(asking, running["front"].egress)
            cluster = f"cluster.cds_egress_shop_v1_http_{at}"
            counts = {
                "front": f"{cluster}.client_ssl_socket_factory.ssl_context_update_by_sds",
                "v1": f"listener.127.0.0.1_{at}.server_ssl_socket_factory.ssl_context_update_by_sds",
            }

            async def updated(times: int) -> None:
                """Ask all the while until both proxies have built their contexts so often."""
                until_s = time.monotonic() + 20
                while min([await running[name].counter(count) for name, count in counts.items()]) < times:
                    assert time.monotonic() < until_s
                    assert set(await client.many(20, 4)) == {(200, "a")}

            assert set(await client.many(50)) == {(200, "a")}
            before = [await running[name].counter(count) for name, count in counts.items()]
            await secrets.put(trust("spiffe://shop", old, new))
            await updated(max(before) + 1)
            await secrets.put(certificate(front, new, front), certificate(v1, new, v1))
            await updated(max(before) + 2)
            await secrets.put(trust("spiffe://shop", new))
            await updated(max(before) + 3)
            handshakes = await running["front"].counter(f"{cluster}.ssl.handshake")
            assert set(await client.many(200, 64)) == {(200, "a")}
            assert await running["front"].counter(f"{cluster}.ssl.handshake") > handshakes
    shutil.rmtree(socket.parent)
