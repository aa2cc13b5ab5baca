"""Endpoints as a file says them."""

from __future__ import annotations

import msgspec
import pytest

from routing.mesh.compile.proxy import Endpoint
from routing.xds.configurations import endpoints_in


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('"10.0.0.1"', Endpoint("10.0.0.1")),
        ('"10.0.0.1:8080"', Endpoint("10.0.0.1", 8080)),
        ('"::1"', Endpoint("::1")),
        ('"[::1]:8080"', Endpoint("::1", 8080)),
        ('{"address": "10.0.0.1"}', Endpoint("10.0.0.1")),
        (
            '{"address": "10.0.0.1:1", "region": "r", "zone": "z", "weight": 2}',
            Endpoint("10.0.0.1", 1, region="r", zone="z", weight=2),
        ),
    ],
)
def test_an_endpoint_is_an_address_or_an_object_that_says_more(text: str, expected: Endpoint) -> None:
    assert endpoints_in(f'{{"cart": [{text}]}}'.encode()) == {"cart": (expected,)}


@pytest.mark.parametrize(
    "text",
    [
        '"cart.local:80"',
        '"10.0.0.1:0"',
        '"10.0.0.1:65536"',
        '"10.0.0.1:x"',
        '""',
        "1",
        "{}",
        '{"address": "10.0.0.1", "weight": 0}',
        '{"address": "10.0.0.1", "rack": "r"}',
    ],
)
def test_what_envoy_would_not_take_is_refused(text: str) -> None:
    with pytest.raises(msgspec.DecodeError):
        endpoints_in(f'{{"cart": [{text}]}}'.encode())
