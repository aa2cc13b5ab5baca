"""Bodies that are made to cost: however they are compressed, the worker goes on to serve the others."""

from __future__ import annotations

import gzip
import socket
import threading
import urllib.error
import urllib.request

import pytest
import zstandard

from tests.support.gateway import Gateway
from tests.support.mqtt_packets import connect

pytestmark = pytest.mark.end_to_end
INFLATED_BYTES_MAX = 64 << 20
"""What `hasty` takes."""


def post(node: Gateway, encoding: str, body: bytes) -> int:
    url = f"http://127.0.0.1:{node.http}/v1/tenants/acme/devices/d/telemetry/s"
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310  # the same
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def pings_during(node: Gateway, encoding: str, body: bytes, status: int) -> int:
    """Post `body`, and return how many pings of an MQTT client were answered meanwhile."""
    answers: list[int] = []
    posting = threading.Thread(target=lambda: answers.append(post(node, encoding, body)))
    pings = 0
    with socket.create_connection(("127.0.0.1", node.mqtt), 60) as client:
        client.sendall(connect())
        assert client.recv(4) == b"\x20\x02\x00\x00"
        posting.start()
        while not answers:
            client.sendall(b"\xc0\x00")
            assert client.recv(2) == b"\xd0\x00"
            pings += 1
        posting.join()
    assert answers == [status]
    return pings


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_nobody_waits_while_a_body_is_inflated(hasty: Gateway, encoding: str) -> None:
    zeros = bytes(INFLATED_BYTES_MAX)  # as large as is allowed, and then no telemetry
    body = gzip.compress(zeros) if encoding == "gzip" else zstandard.compress(zeros)
    assert pings_during(hasty, encoding, body, 413) > 10
