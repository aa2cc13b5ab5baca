"""Mutual TLS everywhere, with certificates from the control plane: strangers, and rotation under load."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import trustme
from cryptography import x509
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.service.discovery.v3 import ads_pb2_grpc
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest

from routing.xds.snapshot import SECRETS
from tests.support import mesh_documents as of
from tests.support.mesh_client import loaded, session
from tests.support.mesh_rig import Envoy, port, running
from tests.support.upstream_servers import servers
from tests.support.xds_rig import ControlPlane, acknowledged, bootstrapped, control_plane

pytestmark = [pytest.mark.end_to_end]
DOMAIN = "shop.example"
NODES = "mesh/shop/virtualNode"


class Authority:
    """The files of an authority of the mesh."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificate = folder / "issuer.pem"
        self.key = folder / "issuer.key"
        self.bundle = folder / "bundle.pem"
        self.current = trustme.CA()
        self.trust(self.current)
        self.issue_with(self.current)

    def issue_with(self, authority: trustme.CA) -> None:
        self.current = authority
        for path, content in ((self.key, authority.private_key_pem), (self.certificate, authority.cert_pem)):
            beside = path.with_suffix(".new")
            beside.write_bytes(content.bytes())
            beside.chmod(0o600)
            beside.rename(path)

    def trust(self, *authorities: trustme.CA) -> None:
        self.bundle.write_bytes(b"".join(each.cert_pem.bytes() for each in authorities))

    def options(self, *more: str) -> list[str]:
        words = ["--trust-domain", DOMAIN, "--issuer-certificate", str(self.certificate)]
        return [*words, "--issuer-key", str(self.key), "--trust-bundle", str(self.bundle), *more]


def shop(cart: int, stock: int, mode: str = "STRICT") -> list[of.Document]:
    """Return a mesh in which `front` calls `cart`, which calls `stock` over TCP; `thief` calls nobody."""
    return [
        of.mesh(),
        of.policy("identity", security={"mutualTls": mode}),
        of.node("front", 8080, backends=("cart.local",)),
        of.node("cart", cart, backends=("stock.local",), healthCheck=CHECK),
        of.node("stock", stock, protocol="tcp"),
        of.node("thief", 8081),
        of.service("cart.local", node="cart"),
        of.service("stock.local", node="stock"),
    ]


CHECK = {
    "protocol": "http",
    "path": "/",
    "healthyThreshold": 2,
    "unhealthyThreshold": 2,
    "intervalMillis": 5000,
    "timeoutMillis": 2000,
}


class Shop:
    """The mesh above with its proxies."""

    def __init__(
        self, plane: ControlPlane, ports: dict[str, int], proxies: dict[str, Envoy], tcp: int
    ) -> None:
        self.plane = plane
        self.ports = ports
        self.proxies = proxies
        self.tcp = tcp

    async def secrets(self, node: str, *names: str) -> tuple[dict[str, Any], list[str]]:
        """Ask for secrets as the proxy of a node does; return those that are given, and the others."""
        asking = json.loads(self.proxies[node].config.read_text())["node"]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.plane.port}") as channel:
            call = ads_pb2_grpc.AggregatedDiscoveryServiceStub(channel).DeltaAggregatedResources(timeout=20)
            request = DeltaDiscoveryRequest(type_url=SECRETS, node=asking, resource_names_subscribe=names)
            await call.write(request)
            got = await call.read()
            given = {each.name: Secret.FromString(each.resource.value) for each in got.resources}
            return given, list(got.removed_resources)

    async def context(self, node: str, folder: Path) -> ssl.SSLContext:
        """Return what the proxy of a node would show who it calls."""
        own, domain = f"spiffe://{DOMAIN}/{NODES}/{node}", f"spiffe://{DOMAIN}"
        given, _ = await self.secrets(node, own, domain)
        tls = given[own].tls_certificate
        file = folder / f"{node}.secret.pem"
        file.write_bytes(tls.private_key.inline_bytes + tls.certificate_chain.inline_bytes)
        context = ssl.create_default_context(
            cadata=given[domain].validation_context.trusted_ca.inline_bytes.decode()
        )
        context.check_hostname = False
        context.load_cert_chain(file)
        return context


@contextlib.asynccontextmanager
async def shop_of(
    folder: Path, authority: Authority, app: int, echo: int, *options: str, mode: str = "STRICT"
) -> AsyncIterator[Shop]:
    ports = {"cart": port(), "stock": port()}
    tcp = port()
    served = of.written(folder / "mesh", *shop(**ports, mode=mode))
    async with control_plane(folder, served, *authority.options(*options)) as plane:
        behind = {"cart": ["--app", f"{ports['cart']}=127.0.0.1:{app}"]}
        behind["cart"] += ["--tcp", f"stock.local=127.0.0.1:{tcp}"]
        behind["stock"] = ["--app", f"{ports['stock']}=127.0.0.1:{echo}"]
        server = f"127.0.0.1:{plane.port}"
        proxies = {
            name: bootstrapped(folder, f"{NODES}/{name}", server, *behind.get(name, []))
            for name in ("front", "cart", "stock", "thief")
        }
        with contextlib.ExitStack() as stack:
            started = [(envoy, stack.enter_context(running(envoy, drain_s=30))) for envoy in proxies.values()]
            for envoy, process in started:
                await envoy.ready(process)
            await plane.until(acknowledged)
            yield Shop(plane, ports, proxies, tcp)


@contextlib.asynccontextmanager
async def echo_server() -> AsyncIterator[int]:
    """Run a server of TCP that sends a line back, and return its port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield int(server.sockets[0].getsockname()[1])


async def echoed(port: int, tls: ssl.SSLContext | None = None) -> bytes:
    """Send a line over TCP, and return what comes back until the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    try:
        writer.write(b"hello\n")
        async with asyncio.timeout(20):
            return await reader.readline()
    except OSError:
        return b""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def test_only_expected_callers_come_through(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with (
        servers(1) as (app,),
        echo_server() as echo,
        session() as asking,
        shop_of(tmp_path, authority, app.port, echo) as of_shop,
    ):
        async with loaded(asking, of_shop.proxies["front"].egress) as load:
            await load.more(50)
            assert load.failed() == {}
        assert await echoed(of_shop.tcp) == b"hello\n"
        url = f"https://127.0.0.1:{of_shop.ports['cart']}/"
        front, thief = [await of_shop.context(name, tmp_path) for name in ("front", "thief")]
        for context, status in ((front, 200), (thief, 403)):
            async with asking.get(url, ssl=context) as answer:
                assert answer.status == status
                assert status == 200 or await answer.text() == "RBAC: access denied"
        with pytest.raises(aiohttp.ClientError):
            await asking.get(url.replace("https", "http"))
        nobody = ssl.create_default_context(cadata=authority.current.cert_pem.bytes().decode())
        nobody.check_hostname = False
        with pytest.raises(aiohttp.ClientError):
            await asking.get(url, ssl=nobody)
        cart = await of_shop.context("cart", tmp_path)
        assert await echoed(of_shop.ports["stock"], cart) == b"hello\n"
        assert await echoed(of_shop.ports["stock"], thief) == b""
        ingress = f"http.cds_ingress_shop_cart_http_{of_shop.ports['cart']}"
        assert await of_shop.proxies["cart"].counter(f"{ingress}.rbac.denied") == 1


@contextlib.asynccontextmanager
async def greeting_server() -> AsyncIterator[int]:
    """Run a server of TCP that speaks first, and return its port."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"welcome\n")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        yield int(server.sockets[0].getsockname()[1])


async def greeted(port: int, tls: ssl.SSLContext) -> bytes:
    """Say nothing over TCP, and return what comes until the end."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
        async with asyncio.timeout(20):
            said = await reader.readline()
        writer.close()
    except OSError:
        return b""
    return said


async def test_who_is_not_expected_hears_nothing_of_a_server_that_speaks_first(tmp_path: Path) -> None:
    async with (
        servers(1) as (app,),
        greeting_server() as greeting,
        shop_of(tmp_path, Authority(tmp_path), app.port, greeting) as of_shop,
    ):
        cart, thief = [await of_shop.context(name, tmp_path) for name in ("cart", "thief")]
        stock = of_shop.ports["stock"]
        assert await greeted(stock, cart) == b"welcome\n"
        assert await greeted(stock, thief) == b""
        assert await greeted(stock, cart) == b"welcome\n"


async def test_a_proxy_gets_its_own_secrets_and_no_other(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with (
        servers(1) as (app,),
        echo_server() as echo,
        shop_of(tmp_path, authority, app.port, echo) as of_shop,
    ):
        names = [f"spiffe://{DOMAIN}/{NODES}/{name}" for name in ("thief", "front")]
        given, missing = await of_shop.secrets("thief", *names)
        assert (list(given), missing) == ([names[0]], [names[1]])
        chain = given[names[0]].tls_certificate.certificate_chain.inline_bytes
        [leaf] = x509.load_pem_x509_certificates(chain)
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert found.get_values_for_type(x509.UniformResourceIdentifier) == [names[0]]


async def test_certificates_and_authorities_are_replaced_while_requests_go_through(tmp_path: Path) -> None:
    first, second = Authority(tmp_path), trustme.CA()
    ttl = ("--certificate-ttl-s", "4")
    async with (
        servers(1) as (app,),
        echo_server() as echo,
        session() as asking,
        shop_of(tmp_path, first, app.port, echo, *ttl) as of_shop,
    ):
        front, cart = of_shop.proxies["front"], of_shop.proxies["cart"]
        cluster = f"cluster.cds_egress_shop_cart_http_{of_shop.ports['cart']}"
        updates = f"{cluster}.client_ssl_socket_factory.ssl_context_update_by_sds"

        async def renewed(times: int) -> None:
            wanted = await front.counter(updates) + times
            async with asyncio.timeout(60):
                while await front.counter(updates) < wanted:
                    await asyncio.sleep(0.1)

        async with loaded(asking, front.egress) as load:
            await renewed(4)
            old = first.current
            first.trust(old, second)
            await said(of_shop.plane, "mesh_authority_loaded", 1)
            await renewed(2)
            first.issue_with(second)
            await said(of_shop.plane, "mesh_authority_loaded", 2)
            await renewed(4)  # nobody has a certificate of the old one any more
            first.trust(second)
            await said(of_shop.plane, "mesh_authority_loaded", 3)
            await renewed(2)
            await load.more(200)
            assert load.failed() == {}
        assert await cart.counter(f"{cluster}.ssl.fail_verify_error") == 0
        first.bundle.write_text("none")
        await said(of_shop.plane, "mesh_authority_bad", 1)


async def said(plane: ControlPlane, text: str, times: int) -> None:
    async with asyncio.timeout(30):
        while plane.log.read_text().count(text) < times:
            await asyncio.sleep(0.05)


async def test_a_mesh_comes_to_mutual_tls_and_goes_back_without_a_failed_request(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with (
        servers(1) as (app,),
        echo_server() as echo,
        session() as asking,
        shop_of(tmp_path, authority, app.port, echo, mode="OFFERED") as of_shop,
    ):
        url = f"http://127.0.0.1:{of_shop.ports['cart']}/"
        async with asking.get(url) as answer:
            assert answer.status == 200
        async with loaded(asking, of_shop.proxies["front"].egress) as load:
            for reloads, mode in enumerate(("USED", "STRICT", "USED", "OFFERED"), 1):
                documents = shop(**of_shop.ports, mode=mode)
                (tmp_path / "mesh/new").write_text(json.dumps(documents))
                (tmp_path / "mesh/new").rename(tmp_path / "mesh/mesh.json")
                await said(of_shop.plane, "mesh_reloaded", reloads)
                await of_shop.plane.until(acknowledged)
                await load.more(100)
            assert load.failed() == {}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"mode": 0o644}, "can be read by others: chmod 600"),
        ({"key": "stranger"}, "is not the key of"),
        ({"bundle": "stranger"}, "does not have the authority that"),
        ({"domain": ""}, "an authority needs a trust domain"),
    ],
    ids=str,
)
async def test_files_that_are_no_authority_are_named(
    tmp_path: Path, change: dict[str, Any], why: str
) -> None:
    authority = Authority(tmp_path)
    authority.key.chmod(change.get("mode", 0o600))
    if change.get("key"):
        authority.key.write_bytes(trustme.CA().private_key_pem.bytes())
    if change.get("bundle"):
        authority.trust(trustme.CA())
    words = authority.options()
    if "domain" in change:
        words[1] = ""
    served = of.written(tmp_path / "mesh", *shop(9001, 9002))
    plane = ControlPlane(tmp_path, served, *words)
    with pytest.raises(AssertionError):
        await plane.start()
    assert why in plane.log.read_text()
