"""`headworks api` as a process: who may call, how much, what is cached, and what is told of it."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from ingest.pki import DevelopmentCa
from routing.tenancy.registry import Status
from runtime import clock
from tests.support.api_gateway import ApiGateway, Said, api_gateway
from tests.support.echo_server import EchoServer, echo_servers
from tests.support.gateway import free_port
from tests.support.stand_in import StandIn, stand_in

pytestmark = pytest.mark.end_to_end
UPSTREAMS = """
[upstreams.gateway]
kind = "internal"
[upstreams.echo]
discovery = {{ kind = "static", endpoints = [{{ address = "{echo}" }}] }}
"""
ROUTES = (
    UPSTREAMS
    + """
[authorizers.keys]
kind = "api_key"
operators = true
[authorizers.people]
kind = "jwt"
jwks_url = "{issuer}"
issuer = "https://issuer.example"
audience = "headworks"
leeway_s = 0
[authorizers.tickets]
kind = "custom"
url = "{judge}"
header = "X-Ticket"
"""
)


def route(name: str, path: str, more: str, *, method: str = "GET", upstream: str = "echo") -> str:
    head = f'name = "{name}"\nmethod = "{method}"\npath = "{path}"\nupstream = "{upstream}"'
    return f"[[routes]]\n{head}\n{more}\n"


KEYED = 'authorizers = ["keys"]'
LISTED = "".join(
    (
        route("open", "/v1/open/{rest...}", "public = true"),
        route("keyed", "/v1/tenants/{tenant}/things", f'{KEYED}\nscopes = ["things:read"]'),
        route("cached", "/v1/cached/{rest...}", "public = true\ncache = { ttl_s = 60 }"),
        route("own", "/v1/own/{rest...}", f"{KEYED}\ncache = {{ ttl_s = 60 }}"),
        route(
            "old",
            "/v1/old",
            f"{KEYED}\n"
            'deprecation = { since = "2026-01-01", sunset = "2099-01-01", link = "https://x.example/v2" }',
        ),
        route(
            "gone", "/v1/gone", 'public = true\ndeprecation = { since = "2025-01-01", sunset = "2026-01-01" }'
        ),
        route("person", "/v1/person", 'authorizers = ["people"]\nscopes = ["things:read"]'),
        route("ticket", "/v1/ticket", 'authorizers = ["tickets"]'),
        route("counted", "/v1/counted", KEYED),
        route("slow", "/v1/slow/{seconds}", KEYED),
        route("usage", "/v1/usage", f'{KEYED}\nscopes = ["usage:read"]', upstream="gateway"),
        route(
            "usage-deprecated",
            "/v1/usage/deprecated",
            f'{KEYED}\nscopes = ["usage:read"]',
            upstream="gateway",
        ),
    )
)
SETTINGS = """
[limits.few]
requests_per_s = 1
requests_burst_s = 3
[limits.daily]
daily_max = 2
[limits.single]
concurrent_max = 1
[analytics]
flush_s = 0.2
"""
THREE_S = 3.0


class Issuer:
    """An issuer whose keys come and go."""

    def __init__(self) -> None:
        self.keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.published: list[str] = []

    def add(self, kid: str) -> None:
        self.keys[kid] = ec.generate_private_key(ec.SECP256R1())
        self.published.append(kid)

    def answer(self, _: Any) -> tuple[int, Any]:
        of = {kid: json.loads(ECAlgorithm.to_jwk(self.keys[kid].public_key())) for kid in self.published}
        return 200, {"keys": [{**jwk, "kid": kid, "alg": "ES256"} for kid, jwk in of.items()]}

    def bearer(self, kid: str, **claims: Any) -> dict[str, str]:
        usual = {
            "iss": "https://issuer.example",
            "aud": "headworks",
            "sub": "ana",
            "tenant": "acme",
            "scope": "things:read",
            "exp": clock.unix_s() + 60,
        }
        token = jwt.encode({**usual, **claims}, self.keys[kid], algorithm="ES256", headers={"kid": kid})
        return {"Authorization": f"Bearer {token}"}


class Judge:
    """A custom authorizer."""

    def answer(self, asked: Any) -> tuple[int, Any]:
        if not asked["credential"].startswith("good"):
            return 403, {}
        return 200, {"tenant": "acme", "name": asked["credential"], "scopes": []}


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EchoServer]:
    with echo_servers(tmp_path_factory.mktemp("echo"), free_port()) as [server]:
        yield server


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    made = Issuer()
    made.add("first")
    return made


@pytest.fixture(scope="module")
def keys(issuer: Issuer) -> Iterator[StandIn]:
    with stand_in(issuer.answer) as made:
        yield made


@pytest.fixture(scope="module")
def judge() -> Iterator[StandIn]:
    with stand_in(Judge().answer) as made:
        yield made


@pytest.fixture(scope="module")
def node(
    tmp_path_factory: pytest.TempPathFactory, echo: EchoServer, keys: StandIn, judge: StandIn
) -> Iterator[ApiGateway]:
    routes = ROUTES.format(echo=echo.address, issuer=keys.url, judge=judge.url) + LISTED
    with api_gateway(tmp_path_factory.mktemp("api"), routes, extra=SETTINGS) as started:
        yield started
        assert not started.lines("unexpected")


def passport(said: Said) -> Any:
    """Return what the upstream is told of the caller."""
    [token] = [value for name, value in said.json["headers"] if name == "x-headworks-identity"]
    return jwt.decode(token, options={"verify_signature": False})


# Who may call.


def test_a_key_is_good_for_its_tenant_and_its_scopes(node: ApiGateway) -> None:
    said = node.ask("/v1/tenants/acme/things", key=node.key("things:read"))
    assert said.status == 200
    assert (passport(said)["tenant"], passport(said)["scopes"]) == ("acme", "things:read")
    assert "x-api-key" not in {name for name, _ in said.json["headers"]}
    assert node.ask("/v1/tenants/acme/things", key=node.key()).slug == "missing-scope"
    assert (
        node.ask("/v1/tenants/acme/things", key=node.key("things:read", tenant="b")).slug == "foreign-tenant"
    )
    unknown = node.ask("/v1/tenants/acme/things", key=f"hw_{'0' * 12}_{'0' * 64}")
    assert (unknown.status, unknown.slug) == (401, "unauthenticated")
    assert "WWW-Authenticate" in unknown.headers


def test_a_key_rotates_with_an_overlap_and_ends_when_it_is_revoked(node: ApiGateway) -> None:
    first = node.key("things:read", name="rotated")
    identifier = first.split("_")[1]
    path = "/v1/tenants/acme/things"
    with node.registry() as registry:
        second = registry.rotate_key(identifier, clock.unix_s(), overlap_s=60)
        assert {node.ask(path, key=secret).status for secret in (first, second)} == {200}
        third = registry.rotate_key(identifier, clock.unix_s(), overlap_s=0)
        node.wait_until(lambda: node.ask(path, key=second).status == 401, THREE_S)
        assert node.ask(path, key=first).status == 401
        assert node.ask(path, key=third).status == 200
        registry.revoke_key(identifier)
    node.wait_until(lambda: node.ask(path, key=third).status == 401, THREE_S)


def test_a_suspended_tenant_is_refused_within_a_second(node: ApiGateway) -> None:
    key = node.key(tenant="late")
    assert node.ask("/v1/counted", key=key).status == 200
    with node.registry() as registry:
        registry.set_tenant_status("late", Status.SUSPENDED, clock.unix_s())
    began_s = time.monotonic()
    node.wait_until(lambda: node.ask("/v1/counted", key=key).status == 403, THREE_S)
    assert time.monotonic() - began_s < 1.5
    assert node.ask("/v1/counted", key=key).slug == "suspended"


def test_a_token_is_good_while_its_key_is_published(node: ApiGateway, issuer: Issuer) -> None:
    said = node.ask("/v1/person", headers=issuer.bearer("first"))
    assert said.status == 200
    assert passport(said)["sub"] == "ana"
    assert "authorization" not in {name for name, _ in said.json["headers"]}
    for wrong in ({"aud": "others"}, {"iss": "https://x"}, {"exp": clock.unix_s() - 5}, {"tenant": "*"}):
        assert node.ask("/v1/person", headers=issuer.bearer("first", **wrong)).status == 401
    assert node.ask("/v1/person", headers=issuer.bearer("first", scope="other:read")).slug == "missing-scope"

    issuer.add("second")  # the issuer rotates: an unknown key makes the gateway look, at most once a second
    node.wait_until(lambda: node.ask("/v1/person", headers=issuer.bearer("second")).status == 200, THREE_S)
    issuer.published.remove("first")
    issuer.add("third")
    node.wait_until(lambda: node.ask("/v1/person", headers=issuer.bearer("third")).status == 200, THREE_S)
    assert node.ask("/v1/person", headers=issuer.bearer("first")).status == 401, "it is published no more"
    assert node.ask("/v1/person", headers=issuer.bearer("second")).status == 200


def test_a_custom_authorizer_is_asked_once_a_credential_and_its_outage_is_503(
    node: ApiGateway, judge: StandIn
) -> None:
    good, bad = {"X-Ticket": "good-1"}, {"X-Ticket": "bad"}
    said = node.ask("/v1/ticket", headers=good)
    assert (said.status, passport(said)["sub"]) == (200, "good-1")
    assert judge.asked[-1] | {"source": ""} == {
        "credential": "good-1",
        "method": "GET",
        "path": "/v1/ticket",
        "source": "",
    }
    before = len(judge.asked)
    assert [node.ask("/v1/ticket", headers=good).status for _ in range(3)] == [200] * 3
    assert len(judge.asked) == before
    assert [node.ask("/v1/ticket", headers=bad).status for _ in range(2)] == [401] * 2
    assert len(judge.asked) == before + 1
    usual, judge.answer = judge.answer, lambda _: (500, {})
    try:
        down = node.ask("/v1/ticket", headers={"X-Ticket": "good-2"})
        assert (down.status, down.slug) == (503, "authorizer-down")
        assert node.ask("/v1/ticket", headers=good).status == 200, "who is known stays known"
    finally:
        judge.answer = usual
    assert node.ask("/v1/ticket", headers={"X-Ticket": "good-2"}).status == 200


def test_a_revoked_client_certificate_is_refused_within_a_second(tmp_path: Path, echo: EchoServer) -> None:
    ca = DevelopmentCa.create(tmp_path / "pki")
    server = ca.server(["localhost"])
    pump, other = ca.device("acme", "pump-7"), ca.device("acme", "pump-8")
    routes = (
        UPSTREAMS.format(echo=echo.address)
        + '[authorizers.devices]\nkind = "certificate"\n'
        + route("shadow", "/v1/tenants/{tenant}/devices/{device}", 'authorizers = ["devices"]')
    )
    api = 'tls = "mutual"'
    tls = (
        f'[tls]\ncertificate = "{server.certificate}"\nkey = "{server.key}"\n'
        f'client_ca = "{ca.ca_path}"\ncrl = "{ca.crl_path}"\n'
    )
    path = "/v1/tenants/acme/devices/pump-7"

    def connected(certificate: Any) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=str(ca.ca_path))
        context.load_cert_chain(certificate.certificate, certificate.key)
        return http.client.HTTPSConnection("localhost", gate.port, timeout=5, context=context)

    def status(connection: http.client.HTTPSConnection) -> int:
        connection.request("GET", path)
        response = connection.getresponse()
        response.read()
        return response.status

    with api_gateway(tmp_path, routes, api=api, extra=tls) as gate, contextlib.ExitStack() as stack:
        kept, foreign = (stack.enter_context(contextlib.closing(connected(each))) for each in (pump, other))
        assert (status(kept), status(foreign)) == (200, 403)
        began_s = time.monotonic()
        ca.revoke(pump.certificate)
        gate.wait_until(lambda: status(kept) == 401, THREE_S)  # an open connection is looked at as well
        assert time.monotonic() - began_s < 1.5
        with contextlib.closing(connected(pump)) as again, pytest.raises((ssl.SSLError, OSError)):
            status(again)
        assert status(foreign) == 403
        anonymous = ssl.create_default_context(cafile=str(ca.ca_path))
        nobody = http.client.HTTPSConnection("localhost", gate.port, timeout=5, context=anonymous)
        with contextlib.closing(nobody), pytest.raises((ssl.SSLError, OSError)):
            status(nobody)


# How much.


def test_more_than_the_rate_is_429_with_a_date_to_come_back(node: ApiGateway) -> None:
    key = node.key(plan="few", tenant="busy")
    answers = [node.ask("/v1/counted", key=key) for _ in range(5)]
    assert [answer.status for answer in answers[:3]] == [200] * 3
    refused = answers[-1]
    assert (refused.status, refused.slug) == (429, "rate-limit")
    assert int(str(refused.headers["Retry-After"])) == 1
    assert '"key-rate";q=3;w=3' in str(refused.headers["RateLimit-Policy"])
    assert '"key-rate";r=0' in str(refused.headers["RateLimit"])
    assert refused.headers["RateLimit-Limit"] == "3"
    assert refused.headers["RateLimit-Remaining"] == "0"
    assert answers[0].headers["RateLimit-Remaining"] == "2"
    node.wait_until(lambda: node.ask("/v1/counted", key=key).status == 200, THREE_S)


def test_a_daily_quota_ends_until_tomorrow(node: ApiGateway) -> None:
    key = node.key(plan="daily", tenant="frugal")
    assert [node.ask("/v1/counted", key=key).status for _ in range(3)] == [200, 200, 429]
    refused = node.ask("/v1/counted", key=key)
    assert refused.slug == "daily-quota"
    assert 0 < int(str(refused.headers["Retry-After"])) <= 86_400


def test_one_call_at_a_time_where_the_plan_says_so(node: ApiGateway) -> None:
    key = node.key(plan="single", tenant="lonely")
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=5)
    with contextlib.closing(connection):
        connection.request("GET", "/v1/slow/0.5", headers={"X-API-Key": key})
        node.wait_until(lambda: node.metric("headworks_api_under_way") == 1)
        refused = node.ask("/v1/counted", key=key)
        assert (refused.status, refused.slug) == (429, "concurrency-limit")
        assert connection.getresponse().status == 200
    assert node.ask("/v1/counted", key=key).status == 200


# What is cached, and what goes.


def test_an_answer_is_kept_has_an_etag_and_is_304_to_who_has_it(node: ApiGateway, echo: EchoServer) -> None:
    asked = {"X-Ledger": "cached-1"}
    first = node.ask("/v1/cached/a", headers=asked)
    again = node.ask("/v1/cached/a", headers=asked)
    assert (first.status, again.status) == (200, 200)
    assert first.body == again.body
    assert "Age" in again.headers
    tag = str(first.headers["ETag"])
    known = node.ask("/v1/cached/a", headers={**asked, "If-None-Match": tag})
    assert (known.status, known.body, known.headers["ETag"]) == (304, b"", tag)
    assert node.ask("/v1/cached/a", headers={**asked, "If-None-Match": '"other"'}).status == 200
    assert echo.entries().count("cached-1") == 1
    node.ask("/v1/cached/a", headers={**asked, "Cache-Control": "no-cache"})
    assert echo.entries().count("cached-1") == 2


def test_what_is_kept_of_one_caller_is_given_to_no_other(node: ApiGateway) -> None:
    ana, bob = node.key(name="ana"), node.key(name="bob")
    first, other = node.ask("/v1/own/a", key=ana), node.ask("/v1/own/a", key=bob)
    assert (passport(first)["sub"], passport(other)["sub"]) == ("ana", "bob")
    again = node.ask("/v1/own/a", key=ana)
    assert "Age" in again.headers
    assert passport(again)["sub"] == "ana"
    assert str(again.headers["Cache-Control"]) == "private, no-cache"


def test_a_deprecated_route_says_so_and_who_uses_it_is_told_of(node: ApiGateway) -> None:
    key = node.key("usage:read", tenant="conservative", name="portal")
    said = node.ask("/v1/old", key=key, headers={"User-Agent": "portal/1.2"})
    assert said.status == 200
    assert said.headers["Deprecation"] == "@1767225600"
    assert said.headers["Sunset"] == "Thu, 01 Jan 2099 00:00:00 GMT"
    assert '<https://x.example/v2>; rel="sunset"' in ", ".join(said.headers.get_all("Link", []))
    rows: list[Any] = []

    def reported() -> list[Any]:
        rows[:] = node.ask("/v1/usage/deprecated", key=key).json["rows"]
        return rows

    node.wait_until(reported)
    [row] = rows
    assert (row["route"], row["calls"], row["agent"], row["tenant"]) == (
        "old",
        1,
        "portal/1.2",
        "conservative",
    )


def test_a_route_after_its_sunset_is_gone(node: ApiGateway) -> None:
    said = node.ask("/v1/gone")
    assert (said.status, said.slug) == (410, "sunset")
    assert said.headers["Sunset"] == "Thu, 01 Jan 2026 00:00:00 GMT"


# What is told.


def test_usage_is_reported_by_route_key_and_tenant(node: ApiGateway) -> None:
    key = node.key("usage:read", "things:read", tenant="counted", name="backend")
    for _ in range(3):
        node.ask("/v1/tenants/counted/things", key=key)
    node.ask("/v1/tenants/acme/things", key=key)

    def rows(by: str) -> dict[str, Any]:
        return {row["name"]: row for row in node.ask(f"/v1/usage?by={by}", key=key).json["rows"]}

    node.wait_until(lambda: rows("route").get("keyed", {}).get("calls") == 4)
    keyed = rows("route")["keyed"]
    assert (keyed["client_errors"], keyed["server_errors"]) == (1, 0)
    assert keyed["refused"] == {"foreign-tenant": 1}
    assert keyed["bytes_out"] > 0
    assert 0 < keyed["latency_s"]["p50"] < 5
    assert key.split("_")[1] in rows("key")
    assert set(rows("tenant")) == {"counted"}
    foreign = node.ask("/v1/usage?tenant=acme", key=key)
    assert (foreign.status, foreign.slug) == (403, "foreign-tenant")
    operator = node.key("usage:read", tenant="*", name="root")
    named = {row["name"] for row in node.ask("/v1/usage?by=tenant", key=operator).json["rows"]}
    assert "counted" in named


def test_a_request_has_one_line_in_the_log_and_its_trace_goes_through(node: ApiGateway) -> None:
    key = node.key("things:read", name="traced")
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    sent = {"traceparent": f"00-{trace}-{span}-01", "tracestate": "x=1", "X-Headworks-Identity": "forged"}
    said = node.ask("/v1/tenants/acme/things?secret=1", key=key, headers=sent)
    told = dict(said.json["headers"])
    assert re.fullmatch(rf"00-{trace}-[0-9a-f]{{16}}-01", told["traceparent"])
    assert span not in told["traceparent"]
    assert told["tracestate"] == "x=1"
    assert passport(said)["sub"] == "traced"
    assert said.headers["X-Headworks-Trace"] == trace
    node.wait_until(lambda: any(line["trace"] == trace for line in node.lines("request")))
    [line] = [line for line in node.lines("request") if line["trace"] == trace]
    assert line["span"] == told["traceparent"].split("-")[2]
    assert (line["method"], line["path"], line["route"]) == ("GET", "/v1/tenants/acme/things", "keyed")
    assert (line["status"], line["tenant"], line["caller"], line["attempts"]) == (200, "acme", "traced", 1)
    assert line["credential"] == "api_key"
    text = node.log.read_text()
    assert key.rpartition("_")[2] not in text
    assert "secret=1" not in text


def test_a_request_without_a_trace_gets_one(node: ApiGateway) -> None:
    said = node.ask("/v1/open/x", headers={"traceparent": "00-garbled-01"})
    told = dict(said.json["headers"])
    assert told["traceparent"].split("-")[1] == said.headers["X-Headworks-Trace"]


def test_metrics_count_by_route_and_name_no_tenant(node: ApiGateway) -> None:
    before = node.metric("headworks_api_requests_total", route="open", status="200")
    seen = node.metric("headworks_api_request_seconds_count", route="open")
    for _ in range(5):
        node.ask("/v1/open/x")
    assert node.metric("headworks_api_requests_total", route="open", status="200") == before + 5
    assert node.metric("headworks_api_request_seconds_count", route="open") == seen + 5
    assert node.metric("headworks_upstream_tries_total", upstream="echo", outcome="answered") > 0
    node.ask("/v1/tenants/acme/things", key=node.key("things:read", tenant="secretive"))
    text = node.get("/metrics")[1].decode()
    assert "secretive" not in text
    assert node.get("/healthz")[0] == 200
    assert node.status()["routes_error"] is None
