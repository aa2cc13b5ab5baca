"""The service that counts for shared limits: what proxies ask it, and what it answers as time goes on."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from envoy.service.ratelimit.v3.rls_pb2 import RateLimitRequest, RateLimitResponse
from typer.testing import CliRunner

from commands.mesh import app
from routing.limits.rates import LocalRates, Rate
from routing.mesh.limits.descriptor import Entries, NotOurs, asked
from routing.mesh.limits.service import RateLimits

LIMIT = [("of", "mesh/shop/virtualNode/cart"), ("requests", "10"), ("per_ms", "60000"), ("burst", "2")]


class Service:
    """The service at a time that the test says."""

    def __init__(self, keys_max: int = 100) -> None:
        self.now_s = 0.0
        self._service = RateLimits(LocalRates(subjects_max=keys_max, forgets=True), lambda: self.now_s)

    def asked(self, *descriptors: Entries, domain: str = "shop") -> Any:
        given = [
            {"entries": [{"key": key, "value": value} for key, value in entries]} for entries in descriptors
        ]
        request = RateLimitRequest(domain=domain, descriptors=given)
        return asyncio.run(self._service.ShouldRateLimit(request, Context()))

    def lets_through(self, *descriptors: Entries, domain: str = "shop") -> bool:
        answer = self.asked(*descriptors, domain=domain)
        return bool(answer.overall_code == RateLimitResponse.OK)


class Refused(Exception):
    pass


class Context:
    async def abort(self, code: grpc.StatusCode, text: str) -> None:
        raise Refused(f"{code.name}: {text}")


def test_a_bucket_is_emptied_and_fills_all_the_time() -> None:
    service = Service()
    assert [service.lets_through(LIMIT) for _ in range(3)] == [True, True, False]
    service.now_s = 5.9
    assert not service.lets_through(LIMIT)
    service.now_s = 6.0
    assert [service.lets_through(LIMIT) for _ in range(2)] == [True, False]


def test_an_answer_says_the_limit_what_is_left_and_when_to_come_again() -> None:
    service = Service()
    (status,) = service.asked(LIMIT).statuses
    assert (status.current_limit.requests_per_unit, status.limit_remaining) == (10, 1)
    assert RateLimitResponse.RateLimit.Unit.Name(status.current_limit.unit) == "MINUTE"
    assert status.duration_until_reset.seconds == 6
    service.asked(LIMIT)
    answer = service.asked(LIMIT)
    assert [(each.key, each.value) for each in answer.response_headers_to_add] == [("retry-after", "6")]
    assert answer.statuses[0].code == RateLimitResponse.OVER_LIMIT
    assert answer.statuses[0].limit_remaining == 0


@pytest.mark.parametrize(
    "other",
    [
        [*LIMIT, ("header", "acme")],
        [*LIMIT, ("remote_address", "10.0.0.1")],
        [("of", "mesh/shop/virtualNode/front"), *LIMIT[1:]],
        [LIMIT[0], ("requests", "11"), *LIMIT[2:]],
    ],
)
def test_who_is_another_and_whose_limit_is_another_is_counted_apart(other: Entries) -> None:
    service = Service()
    assert [service.lets_through(LIMIT) for _ in range(3)] == [True, True, False]
    assert service.lets_through(other)
    assert service.lets_through(LIMIT, domain="other")


def test_nothing_is_taken_of_a_request_that_is_refused() -> None:
    service = Service()
    other = [*LIMIT, ("header", "acme")]
    assert service.lets_through(LIMIT)
    assert service.lets_through(LIMIT)
    assert not service.lets_through(other, LIMIT)
    assert service.asked(other).statuses[0].limit_remaining == 1


def test_of_more_keys_than_there_may_be_the_full_and_then_the_longest_unused_are_forgotten() -> None:
    service = Service(keys_max=2)
    one, two, three = ([*LIMIT, ("header", name)] for name in ("one", "two", "three"))
    assert [service.lets_through(one) for _ in range(3)] == [True, True, False]
    assert service.lets_through(two)
    service.now_s = 6.0  # what `two` has used has come back
    assert service.lets_through(three)
    assert [service.lets_through(one) for _ in range(2)] == [True, False]
    assert service.lets_through(two)  # in place of `three`, which was not asked for as long
    assert [service.lets_through(one) for _ in range(1)] == [False]


@pytest.mark.parametrize(
    "entries",
    [
        [],
        LIMIT[:3],
        [*LIMIT, ("header", "a"), ("header", "b")],
        [*LIMIT[1:], LIMIT[0]],
        [*LIMIT[:3], ("burst", "0")],
        [*LIMIT[:3], ("burst", "-1")],
        [*LIMIT[:3], ("burst", "²")],
        [*LIMIT[:3], ("burst", "9" * 5000)],
        [*LIMIT[:2], ("per_ms", "49"), LIMIT[3]],
    ],
)
def test_what_no_proxy_asks_is_refused(entries: Entries) -> None:
    with pytest.raises(NotOurs):
        asked("shop", entries)
    with pytest.raises(Refused, match="INVALID_ARGUMENT"):
        Service().asked(entries)


def test_a_limit_is_a_rate_and_a_subject_of_fixed_length() -> None:
    found = asked("shop", [*LIMIT, ("header", "x" * 10_000)])
    assert found.rate == Rate(per_s=10 * 1000 / 60_000, burst=2)
    assert len(found.subject) == len("mesh:") + 32
    assert found.subject != asked("shop", [*LIMIT, ("header", "x" * 10_001)]).subject


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--bind", "0.0.0.0:18001"], 1, "is not on loopback: it needs a certificate"),
        (["--bind", "here"], 2, "--bind does not end with HOST:PORT"),
        (["--certificate", "/c.pem"], 2, "--certificate, --key and --ca go together"),
        (["--valkey", "http://:secret@127.0.0.1"], 1, "the address of Valkey is none"),
    ],
)
def test_what_is_wrong_with_its_options_is_said(options: list[str], code: int, said: str) -> None:
    ended = CliRunner().invoke(app, ["limits", *options])
    assert ended.exit_code == code
    assert said in ended.stderr
    assert "secret" not in ended.output
