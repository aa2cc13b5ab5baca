"""HTTP/1.1 on raw sockets: each input is taken, or refused by name; nothing is understood in two ways."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.api_gateway import ApiGateway, api_gateway
from tests.support.echo_server import EchoServer, echo_servers
from tests.support.gateway import free_port

pytestmark = pytest.mark.end_to_end
ROUTES = """
[upstreams.echo]
discovery = {{ kind = "static", endpoints = [{{ address = "127.0.0.1:{port}" }}] }}
[[routes]]
name = "get"
method = "GET"
path = "/v1/{{rest...}}"
upstream = "echo"
public = true
[[routes]]
name = "post"
method = "POST"
path = "/v1/{{rest...}}"
upstream = "echo"
public = true
body_bytes_max = 1000
"""
DEADLINES = 'tls = "off"\nhead_deadline_s = 1.0\nbody_deadline_s = 1.0\nkeep_alive_s = 1.5'
GET = b"GET /v1/x HTTP/1.1\r\n"
GOOD = GET + b"Host: x\r\n\r\n"
POST = b"POST /v1/x HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoServer]:
    with echo_servers(tmp_path_factory.mktemp("echo"), free_port()) as [server]:
        yield server


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory, echo: EchoServer) -> Iterator[ApiGateway]:
    folder = tmp_path_factory.mktemp("api")
    with api_gateway(folder, ROUTES.format(port=echo.port), api=DEADLINES) as started:
        yield started
        assert not started.lines("unexpected")


class Client:
    """A raw connection that reads answers one by one."""

    def __init__(self, node: ApiGateway) -> None:
        self.sock = socket.create_connection(("127.0.0.1", node.port), 5)
        self._held = b""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def _until(self, end: bytes) -> bytes:
        while end not in self._held:
            part = self.sock.recv(65_536)
            if not part:
                raise EOFError(self._held)
            self._held += part
        found, _, self._held = self._held.partition(end)
        return found

    def answer(self) -> tuple[str, int, dict[str, str], bytes]:
        """Return protocol, status, headers and body of the next answer."""
        line, *lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
        length = int(headers.get("content-length", 0))
        while len(self._held) < length:
            part = self.sock.recv(65_536)
            assert part, "the answer is whole"
            self._held += part
        body, self._held = self._held[:length], self._held[length:]
        protocol, status, *_ = line.split(" ")
        return protocol, int(status), headers, body

    def is_closed(self) -> bool:
        """Return whether the gateway ends the connection, and says no more."""
        try:
            return not self._held and self.sock.recv(65_536) == b""
        except ConnectionResetError:
            return True


@pytest.fixture
def client(node: ApiGateway) -> Iterator[Client]:
    made = Client(node)
    with contextlib.closing(made.sock):
        yield made


def big(count: int, value: int) -> bytes:
    return (
        GET + b"Host: x\r\n" + b"".join(b"X-%d: %s\r\n" % (i, b"y" * value) for i in range(count)) + b"\r\n"
    )


REFUSED = {
    # Two lengths, or none that is clear (RFC 9112 6.3).
    "length and chunks": (
        POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + END,
        400,
        "bad-framing",
    ),
    "chunks and length": (
        POST + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + END,
        400,
        "bad-framing",
    ),
    "the same length twice": (POST + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nhi", 400, "bad-framing"),
    "two lengths": (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nhi!", 400, "bad-framing"),
    "a list of lengths": (POST + b"Content-Length: 2, 2\r\n\r\nhi", 400, "bad-framing"),
    "a length with a sign": (POST + b"Content-Length: +2\r\n\r\nhi", 400, "bad-framing"),
    "a negative length": (POST + b"Content-Length: -2\r\n\r\nhi", 400, "bad-framing"),
    "a length in hex": (POST + b"Content-Length: 0x2\r\n\r\nhi", 400, "bad-framing"),
    "an empty length": (POST + b"Content-Length: \r\n\r\nhi", 400, "bad-framing"),
    "a length over 64 bits": (POST + b"Content-Length: 99999999999999999999\r\n\r\nhi", 400, "bad-framing"),
    "identity": (POST + b"Transfer-Encoding: identity\r\n\r\nhi", 400, "bad-framing"),
    "xchunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n" + END, 400, "bad-framing"),
    "chunked, gzip": (POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + END, 400, "bad-framing"),
    "chunked twice": (POST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n" + END, 400, "bad-framing"),
    "gzip, chunked": (
        POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + END,
        501,
        "unknown-transfer-coding",
    ),
    "chunks in HTTP/1.0": (CHUNKED.replace(b"/1.1", b"/1.0") + END, 400, "bad-framing"),
    # Chunks.
    "no chunk size": (CHUNKED + b"\r\nhi\r\n" + END, 400, "bad-framing"),
    "a chunk size of letters": (CHUNKED + b"zz\r\nhi\r\n" + END, 400, "bad-framing"),
    "a negative chunk": (CHUNKED + b"-2\r\nhi\r\n" + END, 400, "bad-framing"),
    "a chunk size with 0x": (CHUNKED + b"0x2\r\nhi\r\n" + END, 400, "bad-framing"),
    "a chunk over 64 bits": (CHUNKED + b"fffffffffffffffff2\r\nhi\r\n" + END, 400, "bad-framing"),
    "a chunk longer than its size": (CHUNKED + b"1\r\nhi\r\n" + END, 400, "bad-framing"),
    "a chunk line without CR": (CHUNKED + b"2\nhi\r\n" + END, 400, "bad-framing"),
    "an extension without CR": (CHUNKED + b"2;a\nhi\r\n" + END, 400, "bad-framing"),
    "a length in the trailers": (CHUNKED + b"2\r\nhi\r\n0\r\nContent-Length: 9\r\n\r\n", 400, "bad-framing"),
    "chunks over the limit": (CHUNKED + b"7d0\r\n" + b"a" * 2000 + b"\r\n" + END, 413, "body-too-large"),
    "a length over the limit": (POST + b"Content-Length: 1001\r\n\r\n" + b"a" * 1001, 413, "body-too-large"),
    # Headers.
    "a folded header": (GET + b"Host: x\r\nX-A: b\r\n c\r\n\r\n", 400, "bad-header"),
    "a space before the first header": (GET + b" Host: x\r\n\r\n", 400, "bad-header"),
    "a space before the colon": (POST + b"Content-Length : 2\r\n\r\nhi", 400, "bad-header"),
    "a vertical tab": (POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + END, 400, "bad-header"),
    "NUL in a header": (GET + b"Host: x\r\nX: a\x00b\r\n\r\n", 400, "bad-header"),
    "CR in a header": (GET + b"Host: x\r\nX: a\rb\r\n\r\n", 400, "bad-header"),
    "a bad name": (GET + b"Host: x\r\nX(: a\r\n\r\n", 400, "bad-header"),
    "no name": (GET + b"Host: x\r\n: a\r\n\r\n", 400, "bad-header"),
    "no colon": (GET + b"Host: x\r\nabc\r\n\r\n", 400, "bad-header"),
    "a large header": (big(1, 40_000), 431, "headers-too-large"),
    "large headers together": (big(60, 400), 431, "headers-too-large"),
    "many headers": (big(100, 1), 431, "headers-too-large"),
    "a large target": (
        GET.replace(b"x ", b"x" * 40_000 + b" ") + b"Host: x\r\n\r\n",
        431,
        "headers-too-large",
    ),
    # Host.
    "no Host": (GET + b"\r\n", 400, "bad-host"),
    "two Hosts": (GET + b"Host: x\r\nHost: y\r\n\r\n", 400, "bad-host"),
    "two Hosts in HTTP/1.0": (b"GET /v1/x HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n", 400, "bad-host"),
    "an empty Host": (GET + b"Host: \r\n\r\n", 400, "bad-host"),
    "a Host with a path": (GET + b"Host: a/b\r\n\r\n", 400, "bad-host"),
    "a list of Hosts": (GET + b"Host: a, b\r\n\r\n", 400, "bad-host"),
    "a Host with a user": (GET + b"Host: a@b\r\n\r\n", 400, "bad-host"),
    "another Host than the target": (b"GET http://y/v1/x HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad-host"),
    # The first line.
    "nonsense": (b"nonsense\r\n\r\n", 400, "bad-request-line"),
    "TLS": (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50) + b"\r\n\r\n",
        400,
        "bad-request-line",
    ),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "bad-request"),
    "HTTP/1.2": (GOOD.replace(b"1.1", b"1.2"), 400, "bad-request-line"),
    "HTTP/0.9": (b"GET /v1/x\r\n\r\n", 505, "unknown-http-version"),
    "no CR at all": (GOOD.replace(b"\r", b""), 400, "bad-request-line"),
    "a method in small letters": (GOOD.replace(b"GET", b"get"), 400, "bad-request-line"),
    "an unknown method": (GOOD.replace(b"GET", b"BREW"), 400, "bad-request-line"),
    "a space in the target": (GOOD.replace(b"/x", b"/x y"), 400, "bad-request-line"),
    "a target that is no path": (GOOD.replace(b" /v1", b" v1"), 400, "bad-target"),
    "UTF-8 in the target": (GOOD.replace(b"/x", b"/\xc3\xa4"), 400, "bad-target"),
    "data after the last request": (GET + b"Host: x\r\nConnection: close\r\n\r\n" + GOOD, 400, "bad-framing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_clear_is_refused_by_name_and_reaches_nobody(
    client: Client, node: ApiGateway, case: str
) -> None:
    data, status, slug = REFUSED[case]
    before = node.metric("headworks_api_refused_total", reason=slug)
    reached = node.metric("headworks_upstream_tries_total")
    client.send(data)
    protocol, said, headers, body = client.answer()
    problem = json.loads(body)
    assert (said, problem["type"], problem["status"]) == (status, f"urn:headworks:problem:{slug}", status)
    assert headers["content-type"] == "application/problem+json"
    assert headers["server"] == "headworks"
    assert protocol == ("HTTP/1.0" if case in {"chunks in HTTP/1.0", "HTTP/0.9"} else "HTTP/1.1")
    assert "b'" not in problem["detail"], "what was sent is not repeated"
    assert client.is_closed()
    assert node.metric("headworks_api_refused_total", reason=slug) == before + 1
    assert node.metric("headworks_upstream_tries_total") == reached


UNREACHED = {
    "TRACE": (GOOD.replace(b"GET", b"TRACE"), 405, "method-not-allowed"),
    "CONNECT": (b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad-target"),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", 400, "bad-target"),
    "a fragment": (GOOD.replace(b"/x", b"/x#y"), 400, "bad-target"),
    "another expectation": (
        POST + b"Expect: coffee\r\nContent-Length: 2\r\n\r\nhi",
        417,
        "unknown-expectation",
    ),
    "an encoded slash": (GOOD.replace(b"/x", b"/a%2Fb"), 400, "bad-path"),
    "two dots": (GOOD.replace(b"/x", b"/../x"), 400, "bad-path"),
}


@pytest.mark.parametrize("case", UNREACHED)
def test_what_is_clear_and_not_served_leaves_the_connection_open(client: Client, case: str) -> None:
    data, status, slug = UNREACHED[case]
    client.send(data + GOOD)
    _, said, _, body = client.answer()
    assert (said, json.loads(body)["type"]) == (status, f"urn:headworks:problem:{slug}")
    assert client.answer()[1] == 200


TAKEN = {
    "a length": (POST + b"Content-Length: 2\r\n\r\nhi", "hi"),
    "chunks": (CHUNKED + b"2\r\nhi\r\n1\r\n!\r\n" + END, "hi!"),
    "chunk extensions": (CHUNKED + b'2;a=b;c="d"\r\nhi\r\n0;e\r\n\r\n', "hi"),
    "trailers": (CHUNKED + b"2\r\nhi\r\n0\r\nX-Trailer: 1\r\n\r\n", "hi"),
    "ChUnKeD": (POST + b"Transfer-Encoding:\tChUnKeD\r\n\r\n2\r\nhi\r\n" + END, "hi"),
    "a body with GET": (GET + b"Host: x\r\nContent-Length: 2\r\n\r\nhi", "hi"),
    "empty lines before": (b"\r\n\r\n" + GOOD, ""),
    "the whole URL": (b"GET http://x/v1/x HTTP/1.1\r\nHost: x\r\n\r\n", ""),
    "a port": (GET + b"Host: x.example:8443\r\n\r\n", ""),
    "an IPv6 address": (GET + b"Host: [::1]:80\r\n\r\n", ""),
    "Latin-1 in a header": (GET + b"Host: x\r\nX-L: \xe4\r\n\r\n", ""),
    "another protocol to upgrade to": (GET + b"Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", ""),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_is_clear_reaches_the_upstream_framed_anew(client: Client, case: str) -> None:
    data, body = TAKEN[case]
    client.send(data)
    _, status, _, said = client.answer()
    assert status == 200, said
    seen = json.loads(said)
    names = [name for name, _ in seen["headers"]]
    assert seen["body"] == body
    assert names.count("host") == 1
    assert not {"transfer-encoding", "connection", "upgrade", "x-trailer"} & set(names)
    assert names.count("content-length") == (1 if body else 0)


def test_the_next_request_is_what_follows_the_body(client: Client) -> None:
    client.send(CHUNKED + b"2\r\nhi\r\n" + END + POST + b"Content-Length: 3\r\n\r\nGET" + GOOD)
    assert [json.loads(client.answer()[3])["body"] for _ in range(3)] == ["hi", "GET", ""]


def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    client.send(b"".join(GOOD.replace(b"/x", b"/slow/0.%d" % (3 - i % 3)) for i in range(2)) + GOOD * 50)
    targets = [json.loads(client.answer()[3])["target"] for _ in range(52)]
    assert targets == ["/v1/slow/0.3", "/v1/slow/0.2"] + ["/v1/x"] * 50


def test_an_answer_to_an_upgrade_that_is_declined_ends_the_connection(client: Client) -> None:
    client.send(GET + b"Host: x\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n" + GOOD)
    assert client.answer()[1] == 200
    assert client.is_closed()


@pytest.mark.parametrize("kept", [False, True])
def test_http_1_0_keeps_the_connection_only_when_asked_to(client: Client, kept: bool) -> None:
    client.send(b"GET /v1/x HTTP/1.0\r\n" + (b"Connection: keep-alive\r\n" if kept else b"") + b"\r\n")
    protocol, status, headers, _ = client.answer()
    assert (protocol, status) == ("HTTP/1.0", 200)
    assert headers.get("connection") == ("keep-alive" if kept else None)
    if kept:
        client.send(b"GET /v1/x HTTP/1.0\r\n\r\n")
        assert client.answer()[1] == 200
    assert client.is_closed()


def test_a_stream_to_http_1_0_ends_with_its_connection(client: Client) -> None:
    client.send(b"GET /v1/drip/3/0.01 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    protocol, _, headers, _ = client.answer()
    assert protocol == "HTTP/1.0"
    assert "transfer-encoding" not in headers
    body = client._held
    while part := client.sock.recv(1000):
        body += part
    assert body == b"drip\n" * 3


def test_a_client_may_ask_before_it_sends_its_body(client: Client) -> None:
    client.send(POST + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert client._until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue"
    client.send(b"hi")
    assert json.loads(client.answer()[3])["body"] == "hi"


def test_who_is_refused_is_not_told_to_send_its_body(client: Client) -> None:
    client.send(POST + b"Expect: 100-continue\r\nContent-Length: 1001\r\n\r\n")
    assert client.answer()[1] == 413
    assert client.is_closed()


def test_an_expectation_of_http_1_0_is_passed_over(client: Client) -> None:
    client.send(b"POST /v1/x HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    client.sock.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.sock.recv(1)  # no 100, which it would not understand (RFC 9110 10.1.1)
    client.sock.settimeout(5)
    client.send(b"hi")
    assert client.answer()[:2] == ("HTTP/1.0", 200)


@pytest.mark.parametrize("data", [TAKEN["a length"][0], TAKEN["chunk extensions"][0], TAKEN["trailers"][0]])
def test_a_request_in_single_bytes_is_the_same_request(client: Client, data: bytes) -> None:
    client.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for position in range(len(data)):
        client.send(data[position : position + 1])
    assert json.loads(client.answer()[3])["body"] == "hi"


def test_a_head_that_does_not_end_is_refused_at_its_deadline(client: Client) -> None:
    began_s = time.monotonic()
    with contextlib.suppress(OSError):
        client.send(GET + b"Host: x\r\n")
        for _ in range(5):
            time.sleep(0.15)
            client.send(b"X-Slow: y\r\n")
    _, status, _, body = client.answer()
    assert (status, json.loads(body)["type"]) == (408, "urn:headworks:problem:slow-head")
    assert client.is_closed()
    assert 0.9 < time.monotonic() - began_s < 4


def test_who_says_nothing_is_let_go_of_without_a_word(client: Client) -> None:
    assert client.is_closed()


def test_a_second_head_that_does_not_end_is_cut_off(client: Client) -> None:
    client.send(GOOD)
    assert client.answer()[1] == 200
    client.send(GET + b"Host: x\r\n")
    assert client.is_closed()


def test_a_body_that_does_not_end_is_refused_at_its_deadline(client: Client) -> None:
    client.send(POST + b"Content-Length: 10\r\n\r\nhi")
    _, status, _, body = client.answer()
    assert (status, json.loads(body)["type"]) == (408, "urn:headworks:problem:slow-body")
    assert client.is_closed()


def test_a_chunk_that_is_bad_after_the_head_came_is_refused_once(client: Client) -> None:
    client.send(CHUNKED)
    time.sleep(0.1)  # so that the handler waits for the body
    client.send(b"zz\r\nhi\r\n" + END)
    _, status, _, body = client.answer()
    assert (status, json.loads(body)["type"]) == (400, "urn:headworks:problem:bad-body")
    assert client.is_closed()


def test_a_body_that_ends_early_reaches_nobody(client: Client, node: ApiGateway) -> None:
    before = node.metric("headworks_upstream_tries_total")
    client.send(POST + b"Content-Length: 10\r\n\r\nhi")
    client.sock.shutdown(socket.SHUT_WR)
    with contextlib.suppress(EOFError):
        assert client.answer()[1] in {400, 408}
    node.wait_until(lambda: not node.metric("headworks_api_under_way"))
    assert node.metric("headworks_upstream_tries_total") == before


def test_many_slow_heads_keep_nobody_out(node: ApiGateway) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(500):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", node.port), 5))
            slow.sendall(GET)
        assert node.ask("/v1/x").status == 200
        slow.settimeout(5)
        assert slow.recv(100).startswith(b"HTTP/1.1 408")
