"""A mesh of real Envoys before real servers: what App Mesh resources say is what happens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
from pathlib import Path

import pytest

from tests.support import mesh_documents as of
from tests.support.mesh_client import Client, cart, session
from tests.support.mesh_rig import envoys, port
from tests.support.upstream_servers import servers

pytestmark = [pytest.mark.end_to_end]


async def test_weights_hold_within_binomial_bounds(tmp_path: Path) -> None:
    count, share = 10_000, 0.8
    ports = {"v1": port(), "v2": port()}
    snapshot = of.snapshot(tmp_path, *cart(ports, of.route("cart", "all", {"v1": 80, "v2": 20})))
    async with servers(2) as (one, two), session() as asking:
        applications: dict[str, dict[int, int]] = {
            "front": {},
            "v1": {ports["v1"]: one.port},
            "v2": {ports["v2"]: two.port},
        }
        async with envoys(tmp_path, snapshot, applications) as running:
            seen = await Client(asking, running["front"].egress).many(count)
    assert set(seen) == {(200, "a"), (200, "b")}
    bound = 4 * math.sqrt(count * share * (1 - share))
    assert abs(seen[200, "a"] - count * share) < bound
    assert one.seen == seen[200, "a"]


async def test_routes_by_header_path_method_query_and_priority(tmp_path: Path) -> None:
    ports = {"v1": port(), "v2": port()}
    to_b = {"v2": 1}
    routes = [
        of.route("cart", "all", {"v1": 1}),
        of.route("cart", "longer", to_b, match={"prefix": "/long/"}),
        of.route("cart", "exact", to_b, match={"path": {"exact": "/exact"}}),
        of.route("cart", "regex", to_b, match={"path": {"regex": "/item/[0-9]+"}}),
        of.route("cart", "posted", to_b, match={"prefix": "/p", "method": "POST"}),
        of.route(
            "cart",
            "asked",
            to_b,
            match={"prefix": "/q", "queryParameters": [{"name": "v", "match": {"exact": "2"}}]},
        ),
        of.route(
            "cart", "asked-at-all", to_b, match={"prefix": "/q", "queryParameters": [{"name": "there"}]}
        ),
        *[
            of.route(
                "cart",
                f"h-{kind}",
                to_b,
                match={"prefix": "/h", "headers": [{"name": f"x-{kind}", "match": match}]},
            )
            for kind, match in {
                "exact": {"exact": "yes"},
                "prefix": {"prefix": "ye"},
                "suffix": {"suffix": "es"},
                "regex": {"regex": "y.s"},
                "range": {"range": {"start": 5, "end": 10}},
            }.items()
        ],
        of.route("cart", "h-present", to_b, match={"prefix": "/h", "headers": [{"name": "x-present"}]}),
        of.route(
            "cart",
            "h-inverted",
            to_b,
            match={"prefix": "/i", "headers": [{"name": "x-no", "invert": True, "match": {"exact": "no"}}]},
        ),
        of.route("cart", "later", to_b, match={"path": {"exact": "/order/exact"}}, priority=10),
        of.route("cart", "first", {"v1": 1}, match={"prefix": "/order"}, priority=1),
    ]
    snapshot = of.snapshot(tmp_path, *cart(ports, *routes))
    async with servers(2) as (one, two), session() as asking:
        applications: dict[str, dict[int, int]] = {
            "front": {},
            "v1": {ports["v1"]: one.port},
            "v2": {ports["v2"]: two.port},
        }
        async with envoys(tmp_path, snapshot, applications) as running:
            client = Client(asking, running["front"].egress)

            async def goes(path: str, method: str = "GET", **headers: str) -> str:
                sent = {f"x-{name}": value for name, value in headers.items()}
                status, text = await client.ask(path, method=method, headers=sent)
                assert status == 200
                return text[0]

            expected = {
                "/": "a", "/long/er": "b", "/long": "a", "/exact": "b", "/exact/not": "a", "/item/7": "b",
                "/item/x": "a", "/p": "a", "/q?v=2": "b", "/q?v=3": "a", "/q?there=": "b", "/h": "a",
                "/i": "a", "/order/exact": "a",
            }  # fmt: skip
            assert {path: await goes(path) for path in expected} == expected
            assert await goes("/p", "POST") == "b"
            for kind in ("exact", "prefix", "suffix", "regex"):
                assert (kind, await goes("/h", **{kind: "yes"})) == (kind, "b")
                assert (kind, await goes("/h", **{kind: "no"})) == (kind, "a")
            assert [await goes("/h", range=str(value)) for value in (4, 5, 9, 10)] == ["a", "b", "b", "a"]
            assert await goes("/h", present="") == "b"
            assert await goes("/i", no="no") == "a"
            assert await goes("/i", no="other") == "b"


async def test_a_host_is_asked_for_with_its_port_or_without(tmp_path: Path) -> None:
    ports = {"v1": port()}
    snapshot = of.snapshot(tmp_path, *cart(ports, of.route("cart", "all", {"v1": 1})))
    async with (
        servers(1) as (one,),
        session() as asking,
        envoys(tmp_path, snapshot, {"front": {}, "v1": {ports["v1"]: one.port}}) as running,
    ):
        client = Client(asking, running["front"].egress)
        assert (await client.ask(host="cart.local:80"))[0] == 200
        assert (await client.ask(host="cart.local"))[0] == 200
        assert (await client.ask(host="cart.local:81"))[0] == 404


@pytest.mark.parametrize("egress", ["DROP_ALL", "ALLOW_ALL"])
async def test_what_is_no_backend_is_refused(tmp_path: Path, egress: str) -> None:
    ports = {"v1": port()}
    documents = cart(ports, of.route("cart", "all", {"v1": 1}))
    documents[0] = of.mesh(egress)
    documents.append(of.service("other.local", node="v1"))
    snapshot = of.snapshot(tmp_path, *documents)
    async with (
        servers(1) as (one,),
        session() as asking,
        envoys(tmp_path, snapshot, {"front": {}, "v1": {ports["v1"]: one.port}}) as running,
    ):
        client = Client(asking, running["front"].egress)
        status, _ = await client.ask(host="other.local")
        # Nobody redirected this connection, so that there is nowhere it was going.
        assert status == (404 if egress == "DROP_ALL" else 503)
        reader, writer = await asyncio.open_connection("127.0.0.1", running["front"].proxy.egress_port)
        writer.write(b"\x00\x01\x02\x03\x04\x05\x06\x07 not HTTP\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
    assert one.seen == 0


async def test_connections_are_passed_on(tmp_path: Path) -> None:
    listening = port()
    db = port()

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello " + await reader.readline())
        await writer.drain()
        writer.close()

    documents = [
        of.mesh(),
        of.node("front", 8080, backends=("db.local",)),
        of.node("db", db, protocol="tcp"),
        of.router("db", 5432, "tcp"),
        of.route("db", "all", {"db": 1}, kind="tcpRoute"),
        of.service("db.local", router="db"),
    ]
    snapshot = of.snapshot(tmp_path, *documents)
    server = await asyncio.start_server(answers, "127.0.0.1", 0)
    at = server.sockets[0].getsockname()[1]
    async with server:
        applications: dict[str, dict[int, int]] = {"front": {}, "db": {db: at}}
        async with envoys(tmp_path, snapshot, applications, tcp={"db.local": listening}):
            reader, writer = await asyncio.open_connection("127.0.0.1", listening)
            writer.write(b"you\n")
            assert await asyncio.wait_for(reader.read(), 10) == b"hello you\n"
            writer.close()


async def test_requests_are_logged_as_the_node_says(tmp_path: Path) -> None:
    ports = {"v1": port()}
    line = [{"key": "path", "value": "%REQ(:PATH)%"}, {"key": "code", "value": "%RESPONSE_CODE%"}]
    log = tmp_path / "access.log"
    logging = {"logging": {"accessLog": {"file": {"path": str(log), "format": {"json": line}}}}}
    documents = cart(ports, of.route("cart", "all", {"v1": 1}))
    documents[1] = of.node("front", 8080, backends=("cart.local",), more=logging)
    snapshot = of.snapshot(tmp_path, *documents)
    async with (
        servers(1) as (one,),
        session() as asking,
        envoys(tmp_path, snapshot, {"front": {}, "v1": {ports["v1"]: one.port}}) as running,
    ):
        await Client(asking, running["front"].egress).ask("/logged")
    assert json.loads(log.read_text()) == {"path": "/logged", "code": 200}
