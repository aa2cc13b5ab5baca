"""Peers that go away, do not read, or come in numbers; and a server certificate that is replaced."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.pki import DevelopmentCa
from tests.support.api_gateway import ApiGateway, api_gateway
from tests.support.echo_server import EchoServer, echo_servers
from tests.support.gateway import free_port

pytestmark = pytest.mark.end_to_end
ROUTES = """
[upstreams.echo]
discovery = {{ kind = "static", endpoints = [{{ address = "{echo}" }}] }}
[authorizers.keys]
kind = "api_key"
[[routes]]
name = "open"
method = "GET"
path = "/v1/{{rest...}}"
upstream = "echo"
public = true
[[routes]]
name = "large"
method = "POST"
path = "/v1/large"
upstream = "echo"
public = true
body_bytes_max = 67108864
[[routes]]
name = "keyed"
method = "GET"
path = "/v1/slow/{{seconds}}"
upstream = "echo"
authorizers = ["keys"]
"""
API = 'tls = "off"\nwrite_deadline_s = 1\nconnections_max = 20'
SETTINGS = "[limits.single]\nconcurrent_max = 1\n"


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoServer]:
    with echo_servers(tmp_path_factory.mktemp("echo"), free_port()) as [server]:
        yield server


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, echo: EchoServer) -> Iterator[ApiGateway]:
    folder = tmp_path_factory.mktemp("api")
    with api_gateway(folder, ROUTES.format(echo=echo.address), api=API, extra=SETTINGS) as started:
        yield started
        assert not started.lines("unexpected")
        assert started.metric("headworks_api_under_way") == 0


def under_way(node: ApiGateway, count: int) -> None:
    node.wait_until(lambda: node.metric("headworks_api_under_way") == count)


def test_a_caller_who_goes_away_gives_its_place_back(node: ApiGateway) -> None:
    key = node.key(plan="single")
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=5)
    connection.request("GET", "/v1/slow/10", headers={"X-API-Key": key})
    under_way(node, 1)
    assert node.ask("/v1/slow/0", key=key).status == 429
    connection.close()
    under_way(node, 0)
    assert node.ask("/v1/slow/0", key=key).status == 200
    told = [line for line in node.lines("request") if line["route"] == "keyed" and line["status"] == 499]
    assert [line["refused"] for line in told] == ["client-gone"]


def test_a_peer_that_does_not_read_is_cut_off(node: ApiGateway) -> None:
    body = b"x" * (16 << 20)
    with socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.settimeout(20)
        peer.connect(("127.0.0.1", node.port))
        head = f"POST /v1/large HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        peer.sendall(head.encode() + body)
        under_way(node, 1)
        began_s = time.monotonic()
        under_way(node, 0)
        assert time.monotonic() - began_s < 8
        received = 0
        with contextlib.suppress(ConnectionError):
            while part := peer.recv(1 << 20):
                received += len(part)
        assert received < len(body), "it cannot be taken for the whole"


def test_an_answer_that_breaks_off_cannot_be_taken_for_the_whole(tmp_path: Path) -> None:
    with (
        echo_servers(tmp_path, free_port()) as [fragile],
        api_gateway(tmp_path, ROUTES.format(echo=fragile.address)) as node,
    ):
        connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=10)
        with contextlib.closing(connection):
            connection.request("GET", "/v1/drip/100/0.05")
            response = connection.getresponse()
            assert response.read(5) == b"drip\n"
            fragile.kill()
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                response.read()
        node.wait_until(lambda: node.metric("headworks_upstream_bodies_broken_total") == 1)
        under_way(node, 0)
        assert node.lines("request")[-1]["refused"] == "upstream-broke-off"


def test_no_more_connections_than_there_may_be(node: ApiGateway) -> None:
    with contextlib.ExitStack() as stack:
        kept = []
        for _ in range(20):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", node.port), 5))
            peer.sendall(b"GET /v1/x HTTP/1.1\r\nHost: x\r\n\r\n")
            assert peer.recv(65_536).startswith(b"HTTP/1.1 200")
            kept.append(peer)
        with socket.create_connection(("127.0.0.1", node.port), 5) as late:
            assert late.recv(1) == b""
        assert node.metric("headworks_api_connections_refused_total", reason="connections") == 1
        kept.pop().close()
        node.wait_until(lambda: answered(node))


def answered(node: ApiGateway) -> bool:
    try:
        return node.ask("/v1/x").status == 200
    except (http.client.HTTPException, OSError):
        return False


def test_a_new_server_certificate_is_shown_and_a_bad_one_is_not(tmp_path: Path, echo: EchoServer) -> None:
    ca = DevelopmentCa.create(tmp_path / "pki")
    first = ca.server(["localhost"])
    tls = f'[tls]\ncertificate = "{first.certificate}"\nkey = "{first.key}"\nhandshake_deadline_s = 1\n'
    routes = ROUTES.format(echo=echo.address)
    with api_gateway(tmp_path, routes, api='tls = "server"', extra=tls) as node:

        def shown() -> bytes:
            context = ssl.create_default_context(cafile=str(ca.ca_path))
            with (
                socket.create_connection(("127.0.0.1", node.port), 5) as sock,
                context.wrap_socket(sock, server_hostname="localhost") as peer,
            ):
                return peer.getpeercert(binary_form=True) or b""

        before = shown()
        ca.server(["localhost"])  # the same files
        node.wait_until(lambda: shown() != before)
        after = shown()
        first.certificate.write_text("nonsense")
        node.wait_until(lambda: node.lines("tls_reload_failed"))
        assert shown() == after

        with socket.create_connection(("127.0.0.1", node.port), 5) as silent:
            assert silent.recv(1) == b"", "who does not shake hands is let go of"
        refused = "headworks_api_connections_refused_total"
        node.wait_until(lambda: node.metric(refused, reason="handshake") >= 1)
        with socket.create_connection(("127.0.0.1", node.port), 5) as plain:
            plain.sendall(b"GET /v1/x HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(ConnectionError):
                assert b"200" not in plain.recv(1000)
