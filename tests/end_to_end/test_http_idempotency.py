"""`Idempotency-Key` on the wire: no 202 for what is not stored, and nothing is stored twice."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.end_to_end.test_clients import client_tls, found, new_stream, telemetry
from tests.support.gateway import Gateway

pytestmark = pytest.mark.end_to_end


def post(url: str, key: str, context: ssl.SSLContext | None = None, **extra: Any) -> tuple[int, Any]:
    """Send one measurement with a key, on a connection of its own; return the status and the answer."""
    body = json.dumps(telemetry(**extra)).encode()
    headers = {"Content-Type": "application/json", "Idempotency-Key": key}
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")  # noqa: S310  # http(s)
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as response:  # noqa: S310  # the same
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def url_of(node: Gateway, device: str, stream: str) -> str:
    return f"http://127.0.0.1:{node.http}/v1/tenants/acme/devices/{device}/telemetry/{stream}"


def test_a_key_used_for_another_device_is_refused_and_not_acknowledged(node: Gateway) -> None:
    stream = new_stream()
    assert post(url_of(node, "a", stream), stream)[0] == 202
    status, problem = post(url_of(node, "b", stream), stream)
    assert (status, problem["type"]) == (422, "urn:headworks:problem:idempotency-key-reused")
    assert [device for _, device, _ in found(node, stream, 1)] == ["a"]


def test_a_gateway_and_a_device_of_one_name_never_share_a_key(node: Gateway) -> None:
    stream = new_stream()
    ids = []
    for kind in ("gateway", "device"):
        context = client_tls(node, node.ca.device("acme", "twin", kind=kind))
        status, answer = post(f"https://localhost:{node.https}/v1/telemetry/{stream}", stream, context)
        assert status == 202
        ids += answer["ids"]
    assert len(set(ids)) == 2
    found(node, stream, 2)


@pytest.mark.parametrize("key", ["", "\xff", "x" * 256], ids=["empty", "not UTF-8", "long"])
def test_a_key_that_is_none_is_refused(node: Gateway, key: str) -> None:
    status, problem = post(url_of(node, "a", new_stream()), key)
    assert (status, problem["type"]) == (400, "urn:headworks:problem:bad-idempotency-key")
