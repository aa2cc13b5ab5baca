"""HTTP and MQTT as nobody should speak them: raw sockets, each refused by name, and nothing taken."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import pytest

from tests.end_to_end.test_clients import client_tls, found, new_stream, telemetry
from tests.support.gateway import Gateway

pytestmark = pytest.mark.end_to_end
BODY = json.dumps(telemetry()).encode()


def said(port: int, data: bytes, *, half_close: bool = False, deadline_s: float = 5.0) -> bytes:
    """Send `data` and return all that the server says until it closes or is silent."""
    with socket.create_connection(("127.0.0.1", port), deadline_s) as sock:
        sock.sendall(data)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        sock.settimeout(1.0)
        answer = b""
        try:
            while chunk := sock.recv(65_536):
                answer += chunk
        except (TimeoutError, ConnectionResetError):
            pass
        return answer


def request(stream: str, headers: str = "", body: bytes = BODY, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"POST /v1/tenants/acme/devices/raw/telemetry/{stream} HTTP/1.1\r\nHost: x\r\n"
    return f"{head}Content-Type: application/json\r\nContent-Length: {size}\r\n{headers}\r\n".encode() + body


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize(
    "data",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50) + b"\r\n\r\n",
        b"POST /v1/telemetry/s HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
        b"POST /v1/telemetry/s HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 40_000 + b"\r\n\r\n",
        b"GET /" + b"y" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v1/telemetry/s HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["nonsense", "TLS", "bad length", "large header", "large path", "two lengths"],
)
def test_what_is_not_http_is_a_problem_of_400(node: Gateway, data: bytes) -> None:
    before = node.metric('headworks_protocol_errors_total{protocol="http"}')
    answer = said(node.http, data)
    assert status_of(answer) in {400, 413, 414, 431}
    assert b"application/problem+json" in answer
    assert node.metric('headworks_protocol_errors_total{protocol="http"}') == before + 1


def test_a_body_that_ends_early_is_not_taken(node: Gateway) -> None:
    stream = new_stream()
    said(node.http, request(stream, length=len(BODY) + 10), half_close=True)
    found(node, stream, 0, 0.5)


def test_chunks_that_are_garbage_are_not_taken(node: Gateway) -> None:
    stream = new_stream()
    head = f"POST /v1/tenants/acme/devices/raw/telemetry/{stream} HTTP/1.1\r\nHost: x\r\n"
    said(node.http, f"{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n".encode() + BODY)
    found(node, stream, 0, 0.5)


def test_requests_may_be_pipelined(node: Gateway) -> None:
    stream = new_stream()
    answer = said(node.http, request(stream) * 3)
    assert answer.count(b"HTTP/1.1 202") == 3
    found(node, stream, 3)


def test_a_client_may_ask_before_it_sends_its_body(node: Gateway) -> None:
    stream = new_stream()
    with socket.create_connection(("127.0.0.1", node.http), 5) as sock:
        sock.sendall(request(stream, "Expect: 100-continue\r\n", b"", len(BODY)))
        assert sock.recv(100).startswith(b"HTTP/1.1 100")
        sock.sendall(BODY)
        assert b" 202 " in sock.recv(1000)
    found(node, stream, 1)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/telemetry/s", 405),
        ("GET", "/", 404),
        ("POST", "/v2/telemetry/s", 404),
        ("POST", "/v1/tenants/acme/devices/d", 404),
        ("POST", "/v1/tenants/acme/devices/a%2Bb/telemetry/s", 404),
        ("GET", "/v1/stream", 426),
        ("GET", "/mqtt", 426),
    ],
)
def test_a_wrong_method_or_path_is_a_problem(node: Gateway, method: str, path: str, status: int) -> None:
    data = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY
    answer = said(node.http, data)
    assert status_of(answer) == status
    assert b"application/problem+json" in answer


@pytest.mark.parametrize("key", [b"hw_\xff_\xfe", "hw_é".encode(), b"\xff"])
def test_a_credential_that_is_not_ascii_is_refused_and_not_an_error_of_ours(
    node: Gateway, key: bytes
) -> None:
    data = request("s", "Connection: close\r\n")
    answer = said(node.http, data.replace(b"Host: x\r\n", b"Host: x\r\nX-API-Key: " + key + b"\r\n"))
    assert status_of(answer) == 401


def test_mqtt_that_is_none_is_closed_and_counted(node: Gateway) -> None:
    before = node.metric('headworks_protocol_errors_total{protocol="mqtt"}')
    assert said(node.mqtt, b"GET / HTTP/1.1\r\n\r\n") == b""
    assert node.metric('headworks_protocol_errors_total{protocol="mqtt"}') == before + 1


def test_mqtt_5_hears_why_it_is_disconnected(node: Gateway) -> None:
    connect = b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x02xy"
    answer = said(node.mqtt, connect + b"\x32\x04\x00\x00\x00\x01")
    assert b"\xe0" in answer
    assert b"the topic is empty" in answer or b"\x81" in answer


def test_a_client_that_falls_silent_is_disconnected_after_one_and_a_half_keep_alives(node: Gateway) -> None:
    connect = b"\x10\x0f\x00\x04MQTT\x05\x02\x00\x01\x00\x00\x02ka"
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", node.mqtt), 5) as sock:
        sock.sendall(connect)
        sock.settimeout(8)
        answer = b""
        while chunk := sock.recv(1000):
            answer += chunk
    assert 1.4 < time.monotonic() - began < 5
    assert b"\x8d" in answer


def test_a_body_that_comes_too_slowly_is_refused_by_name(hasty: Gateway) -> None:
    stream = new_stream()
    answer = said(hasty.http, request(stream, length=len(BODY) + 10))
    assert status_of(answer) == 408
    assert b"urn:headworks:problem:slow-body" in answer
    assert b"connection: close" in answer.lower()
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", hasty.http), 5) as sock:
        sock.sendall(b"POST /v1/telemetry/s HTTP/1.1\r\nHost:")  # and the rest never comes
        assert sock.recv(1000) == b""
    assert time.monotonic() - began < 4
    found(hasty, stream, 0, 0.3)


@pytest.mark.parametrize("tls", [False, True])
def test_a_peer_that_asks_and_does_not_read_is_cut_off(hasty: Gateway, tls: bool) -> None:
    lost = 'headworks_connections_closed_total{reason="lost"}'
    before = hasty.metric(lost)
    with contextlib.ExitStack() as open_sockets:
        peer = socket.socket()
        open_sockets.callback(peer.close)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        peer.connect(("127.0.0.1", hasty.https if tls else hasty.http))
        if tls:
            context = client_tls(hasty, hasty.ca.device("acme", "deaf"))
            peer = open_sockets.enter_context(context.wrap_socket(peer, server_hostname="localhost"))
        peer.settimeout(0.2)
        with contextlib.suppress(TimeoutError, ConnectionError):
            while True:
                peer.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n" * 500)
        hasty.wait_until(lambda: hasty.metric(lost) > before, 10)
    hasty.wait_until(lambda: hasty.status()["connections"] == 0, 5)
