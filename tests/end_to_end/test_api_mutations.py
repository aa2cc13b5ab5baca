"""Requests changed at random: each answer is HTTP with a status that has a reason, and nothing breaks."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
from pathlib import Path

import pytest

from tests.end_to_end.test_api_http import DEADLINES, REFUSED, ROUTES, TAKEN, UNREACHED
from tests.support.api_gateway import ApiGateway, api_gateway
from tests.support.echo_server import echo_servers
from tests.support.gateway import free_port

pytestmark = pytest.mark.end_to_end
CORPUS = [case[0] for cases in (REFUSED, UNREACHED, TAKEN) for case in cases.values() if len(case[0]) < 3000]
PIECES = [
    *(b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b";", b"\x00", b"\xff", b"?", b"#", b"//", b"%2e%2e"),
    *(b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n", b"Host: y\r\n", b"0\r\n\r\n"),
    *(b"HTTP/1.0", b"Connection: close\r\n", b"Connection: upgrade\r\n", b"Upgrade: websocket\r\n"),
    *(b"Expect: 100-continue\r\n", b"Content-Encoding: gzip\r\n", b"GET /v1/x HTTP/1.1\r\nHost: x\r\n\r\n"),
]
STATUSES = {200, 204, 400, 404, 405, 408, 413, 415, 417, 431, 501, 505}
MUTANTS = 300
SILENCE_S = 0.05
HEAD = re.compile(rb"HTTP/1\.[01] (\d{3}) [^\r\n]*\r\n(.*?\r\n)?\r\n", re.DOTALL)


def mutated(chance: random.Random) -> bytes:
    data = bytearray(chance.choice(CORPUS))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(5):
            case 0:
                del data[at : at + chance.randint(1, 8)]
            case 1:
                data[at:at] = chance.choice(PIECES)
            case 2:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 3:
                data[at:at] = data[at : at + chance.randint(1, 30)]
            case _:
                data += chance.choice(CORPUS)
    return bytes(data)


def answers(node: ApiGateway, data: bytes) -> bytes:
    """Return all that is said until the connection ends, or nothing comes for a while."""
    heard = b""
    with (
        socket.create_connection(("127.0.0.1", node.port), 5) as sock,
        contextlib.suppress(TimeoutError, ConnectionError),
    ):
        sock.sendall(data)
        sock.settimeout(SILENCE_S)
        while part := sock.recv(65_536):
            heard += part
    return heard


def check(heard: bytes) -> None:
    """Take answers apart; a refusal is problem details."""
    while heard:
        head = HEAD.match(heard)
        assert head is not None, heard[:200]
        status, fields = int(head[1]), head[2] or b""
        heard = heard[head.end() :]
        if status == 100:
            continue
        assert status in STATUSES
        length = re.search(rb"Content-Length: (\d+)", fields)
        body = heard[: int(length[1]) if length else 0]
        if body.startswith(b"HTTP/"):
            continue  # of HEAD
        heard = heard[len(body) :]
        if status >= 400 and body:
            assert json.loads(body)["status"] == status


def test_nothing_that_is_sent_breaks_it_or_is_answered_without_a_name(tmp_path: Path) -> None:
    chance = random.Random(7)
    with (
        echo_servers(tmp_path, free_port()) as [echo],
        api_gateway(tmp_path, ROUTES.format(port=echo.port), api=DEADLINES) as node,
    ):
        for _ in range(MUTANTS):
            data = mutated(chance)
            try:
                check(answers(node, data))
            except (AssertionError, ValueError) as error:
                raise AssertionError(data) from error
        assert node.ask("/v1/x").status == 200
        assert not node.lines("unexpected")
        assert not node.metric("headworks_api_errors_total")
        node.wait_until(lambda: not node.metric("headworks_api_under_way"))
