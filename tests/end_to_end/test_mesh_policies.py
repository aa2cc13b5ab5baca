"""What policies say, done by real Envoys before real servers."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import math
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import jwt
import pytest
import trustme
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from tests.support import mesh_documents as of
from tests.support.grpc_server import grpc_server
from tests.support.limits_rig import Limits
from tests.support.mesh_client import ONCE, Client, cart, session
from tests.support.mesh_rig import Envoy, envoys, port
from tests.support.upstream_servers import Server, servers
from tests.support.valkey_server import ValkeyServer

pytestmark = [pytest.mark.end_to_end]

HOUR = {"unit": "s", "value": 3600}
ROUTE = "virtualRouter/cart/route/all"


class Shop(collections.UserDict[str, Envoy]):
    """Running Envoys by name, the servers behind them, and a session to ask with."""

    def __init__(self, asking: aiohttp.ClientSession, edge: int, made: list[Server]) -> None:
        super().__init__()
        self.asking = asking
        self.edge = edge
        self.servers = made

    @property
    def front(self) -> Client:
        return Client(self.asking, self["front"].egress)

    @property
    def gateway(self) -> Client:
        return Client(self.asking, self["edge"].url(self.edge))


@contextlib.asynccontextmanager
async def shop(
    folder: Path,
    policies: list[of.Document],
    weights: dict[str, int] | None = None,
    **route: Any,
) -> AsyncIterator[Shop]:
    """Run a caller and a gateway before two versions of a service."""
    ports = {"v1": port(), "v2": port()}
    edge = port()
    documents = [
        *cart(ports, of.route("cart", "all", weights or {"v1": 1}, **route)),
        of.gateway("edge", edge),
        of.gateway_route("edge", "all", "cart.local", {"prefix": "/"}),
        of.gateway_route("edge", "own", "cart.local", {"prefix": "/own/"}),
    ]
    snapshot = of.snapshot(folder, *documents, *policies)
    async with servers(2) as made, session() as asking:
        applications: dict[str, dict[int, int]] = {"front": {}, "edge": {}}
        applications |= {name: {ports[name]: server.port} for name, server in zip(ports, made, strict=True)}
        found = Shop(asking, edge, made)
        async with envoys(folder, snapshot, applications) as running:
            found.update(running)
            yield found


def within(count: int, of_all: int, share: float) -> bool:
    """Return whether a count is what a share of many gives but once in 15,000 times."""
    return abs(count - of_all * share) <= 4 * math.sqrt(of_all * share * (1 - share))


async def statuses(client: Client, count: int, path: str = "/") -> collections.Counter[int]:
    seen: collections.Counter[int] = collections.Counter()
    for (status, _), times in (await client.many(count, path=path)).items():
        seen[status] += times
    return seen


async def until(reached: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not reached():
            await asyncio.sleep(0.02)


async def test_a_node_takes_as_many_requests_as_its_limit_says_from_all_callers(tmp_path: Path) -> None:
    limit = {"requests": 30, "per": HOUR}
    async with shop(tmp_path, [of.policy("few", "virtualNode/v1", localRateLimit=limit)]) as running:
        one, _ = running.servers
        seen = await statuses(running.front, 50) + await statuses(running.gateway, 50)
        assert seen == {200: 30, 429: 70}
        assert one.seen == 30
        assert await running["v1"].counter("policy.http_local_rate_limit.rate_limited") == 70
        url = running["front"].egress
        async with running.asking.get(url, headers={"Host": "cart.local"}) as answer:
            assert answer.status == 429
            assert answer.headers["Retry-After"] == "120"
            assert answer.headers["X-RateLimit-Limit"] == "30"
            assert answer.headers["X-RateLimit-Remaining"] == "0"


async def test_a_burst_is_smaller_or_larger_than_the_rate_and_comes_back(tmp_path: Path) -> None:
    limit = {"requests": 600, "per": {"unit": "s", "value": 60}, "burst": 5}
    async with shop(tmp_path, [of.policy("few", "virtualNode/v1", localRateLimit=limit)]) as running:
        started_s = time.monotonic()
        seen = await statuses(running.front, 100)
        most = 5 + 10 * (time.monotonic() - started_s) + 1
        assert 5 <= seen[200] <= most
        async with asyncio.timeout(30):
            while (await running.front.ask())[0] != 200:
                await asyncio.sleep(0.05)


async def test_limits_of_a_gateway_its_routes_and_the_routes_of_services_count_once(tmp_path: Path) -> None:
    policies = [
        of.policy("edge", "virtualGateway/edge", localRateLimit={"requests": 20, "per": HOUR}),
        of.policy("own", "virtualGateway/edge/gatewayRoute/own", localRateLimit={"requests": 7, "per": HOUR}),
        of.policy("route", ROUTE, localRateLimit={"requests": 25, "per": HOUR}),
    ]
    async with shop(tmp_path, policies) as running:
        one, _ = running.servers
        assert await statuses(running.gateway, 40) == {200: 20, 429: 20}
        # What is said of a gateway route holds in place of what is said of its gateway; 5 of 25 are left.
        assert await statuses(running.gateway, 40, "/own/x") == {200: 5, 429: 35}
        assert one.seen == 25
        assert await statuses(running.front, 40) == {200: 25, 429: 15}  # each proxy has a bucket of its own


@pytest.mark.parametrize("target", [ROUTE, "virtualNode/v1"])
async def test_faults_are_made_for_their_shares_of_requests(tmp_path: Path, target: str) -> None:
    count = 1500
    faults = {
        "delay": {"duration": {"unit": "ms", "value": 300}, "percent": 10},
        "abort": {"status": 503, "percent": 20},
    }
    async with shop(tmp_path, [of.policy("bad", target, faults=faults)], **ONCE) as running:
        one, _ = running.servers
        waited = 0
        seen: collections.Counter[int] = collections.Counter()
        left = iter(range(count))

        async def some() -> None:
            nonlocal waited
            for _ in left:
                started_s = time.monotonic()
                status, _ = await running.front.ask()
                waited += time.monotonic() - started_s >= 0.25
                seen[status] += 1

        await asyncio.gather(*[some() for _ in range(16)])
        assert set(seen) == {200, 503}
        assert within(seen[503], count, 0.2)
        assert one.seen == seen[200]
        name, of_whom = (
            ("front", "rds_egress_shop_front") if target == ROUTE else ("v1", "cds_ingress_shop_v1_http")
        )
        delays = 0
        async with running.asking.get(f"http://127.0.0.1:{running[name].proxy.admin_port}/stats") as answer:
            for line in (await answer.text()).splitlines():
                if line.startswith(f"http.{of_whom}") and "fault.delays_injected" in line:
                    delays += int(line.rsplit(" ", 1)[1])
        assert within(delays, count, 0.1)
        assert waited >= delays


async def test_a_share_of_requests_is_mirrored_and_nobody_waits_for_it(tmp_path: Path) -> None:
    count = 1000
    mirror = {"virtualNode": "v2", "percent": 30}
    async with shop(tmp_path, [of.policy("copy", ROUTE, mirror=mirror)]) as running:
        one, two = running.servers
        heard: list[tuple[str, str, bytes]] = []

        async def broken(request: web.Request) -> web.Response:
            heard.append((request.host, request.path_qs, await request.read()))
            raise ConnectionResetError

        two.behaviour = broken
        seen: collections.Counter[tuple[int, str]] = collections.Counter()
        left = iter(range(count))

        async def some() -> None:
            for index in left:
                url = f"{running['front'].egress}/x?n={index}"
                async with running.asking.post(url, headers={"Host": "cart.local"}, data=b"body") as answer:
                    seen[answer.status, (await answer.text())[0]] += 1

        await asyncio.gather(*[some() for _ in range(16)])
        assert seen == {(200, "a"): count}
        assert one.seen == count
        sent = f"cluster.cds_egress_shop_v2_http_{running['v2'].only_port}.upstream_rq_total"
        copies = await running["front"].counter(sent)
        assert within(copies, count, 0.3)
        await until(lambda: len(heard) == copies)
        host, path, body = heard[0]
        assert (host, path[:5], body) == ("cart.local", "/x?n=", b"body")
        assert len({path for _, path, _ in heard}) == len(heard)


async def test_a_gateway_mirrors_too_and_a_mirror_that_never_answers_costs_nothing(tmp_path: Path) -> None:
    async with shop(tmp_path, [of.policy("copy", ROUTE, mirror={"virtualNode": "v2"})]) as running:
        one, two = running.servers
        for_ever = asyncio.Event()

        async def silent(_: web.Request) -> web.Response:
            await for_ever.wait()
            return web.Response()

        two.behaviour = silent
        assert set(await running.gateway.many(100, at_once=8)) == {(200, "a")}
        await until(lambda: two.seen == 100)
        assert one.seen == 100
        for_ever.set()


async def test_a_device_is_always_sent_to_the_same_version(tmp_path: Path) -> None:
    devices = [f"device-{index:05}" for index in range(2000)]

    async def assigned(client: Client) -> dict[str, str]:
        found: dict[str, str] = {}
        left = iter(devices)

        async def some() -> None:
            for device in left:
                status, text = await client.ask(headers={"x-device-id": device})
                assert status == 200
                found[device] = text[0]

        await asyncio.gather(*[some() for _ in range(16)])
        return found

    policies = [of.policy("same", ROUTE, sticky={"header": "x-device-id"})]
    async with shop(tmp_path / "first", policies, {"v1": 7, "v2": 3}) as running:
        first = await assigned(running.front)
        assert within(sum(to == "b" for to in first.values()), len(devices), 0.3)
        assert await assigned(running.front) == first
        assert await assigned(running.gateway) == first  # any proxy sends it to the same
        by_chance = await running.front.many(200)
        assert set(by_chance) == {(200, "a"), (200, "b")}
    async with shop(tmp_path / "later", policies, {"v1": 60, "v2": 40}) as running:
        later = await assigned(running.front)
        assert within(sum(to == "b" for to in later.values()), len(devices), 0.4)
        moved = [device for device in devices if later[device] != first[device]]
        assert {(first[device], later[device]) for device in moved} == {("a", "b")}
        assert within(len(moved), len(devices), 0.1)


async def test_a_header_chooses_a_version_and_devices_without_it_are_split(tmp_path: Path) -> None:
    asked = [{"name": "x-version", "match": {"exact": "2"}}]
    policies = [
        of.route("cart", "asked", {"v2": 1}, match={"prefix": "/", "headers": asked}, priority=0),
        of.policy("same", ROUTE, sticky={"header": "x-device-id"}),
    ]
    async with shop(tmp_path, policies, {"v1": 80, "v2": 20}) as running:
        devices = [{"x-device-id": f"device-{index}"} for index in range(600)]
        for client in (running.front, running.gateway):
            given = [(await client.ask(headers=device))[1][0] for device in devices]
            assert within(given.count("b"), len(devices), 0.2)
            wanted = [{**device, "x-version": "2"} for device in devices[:50]]
            assert {(await client.ask(headers=headers))[1][0] for headers in wanted} == {"b"}


async def test_a_budget_stops_a_storm_of_retries(tmp_path: Path) -> None:
    count = 400
    retries = {
        "maxRetries": 5,
        "perRetryTimeout": {"unit": "s", "value": 10},
        "httpRetryEvents": ["server-error"],
    }

    async def failing(_: web.Request) -> web.Response:
        await asyncio.sleep(0.05)
        return web.Response(status=503)

    async def asked(folder: Path, policies: list[of.Document]) -> int:
        async with shop(folder, policies, retryPolicy=retries) as running:
            one, _ = running.servers
            one.behaviour = failing
            at = running["v1"].only_port
            stopped = f"cluster.cds_egress_shop_v1_http_{at}.upstream_rq_retry_overflow"
            assert await running["front"].counter(stopped) == 0
            assert set(await running.front.many(count, at_once=50)) == {(503, "")}
            assert bool(await running["front"].counter(stopped)) == bool(policies)
            return one.seen

    assert await asked(tmp_path / "all", []) == 6 * count
    few = of.policy("few", "virtualNode/v1", retryBudget={"percent": 10, "minRetries": 1})
    assert await asked(tmp_path / "few", [few]) < 1.5 * count


async def test_a_request_takes_more_than_15_s_where_the_route_and_the_listener_say_so(tmp_path: Path) -> None:
    longer = {"http": {"perRequest": {"unit": "s", "value": 30}}}
    ports = {"v1": port(), "v2": port()}
    routes = [
        of.route("cart", "long", {"v1": 1}, match={"prefix": "/long"}, timeout=longer["http"]),
        of.route("cart", "listener", {"v2": 1}, match={"prefix": "/listener"}, timeout=longer["http"]),
        of.route("cart", "route", {"v1": 1}, match={"prefix": "/route"}),
    ]
    documents = cart(ports, *routes, timeout=longer)
    documents[-4] = of.node("v2", ports["v2"])  # its listener says nothing
    snapshot = of.snapshot(tmp_path, *documents)

    async def slow(_: web.Request) -> web.Response:
        await asyncio.sleep(16.5)
        return web.Response(text="done")

    async with servers(2) as (one, two), session() as asking:
        one.behaviour = two.behaviour = slow
        applications: dict[str, dict[int, int]] = {
            "front": {},
            "v1": {ports["v1"]: one.port},
            "v2": {ports["v2"]: two.port},
        }
        async with envoys(tmp_path, snapshot, applications) as running:
            client = Client(asking, running["front"].egress)
            answers = await asyncio.gather(*[client.ask(path) for path in ("/long", "/listener", "/route")])
    assert [status for status, _ in answers] == [200, 504, 504]


LATER = 4_000_000_000
ISSUER = "https://issuer.example"
KEYS = {kid: ec.generate_private_key(ec.SECP256R1()) for kid in ("old", "new", "foreign")}


def jwks(*kids: str) -> str:
    keys = [{**ECAlgorithm.to_jwk(KEYS[kid].public_key(), as_dict=True), "kid": kid} for kid in kids]
    return json.dumps({"keys": keys})


def bearer(kid: str = "old", *, key: str = "", **claims: Any) -> dict[str, str]:
    said = {"iss": ISSUER, "aud": "shop", "sub": "jo", "exp": LATER, **claims}
    said = {name: value for name, value in said.items() if value is not None}
    token = jwt.encode(said, KEYS[key or kid], algorithm="ES256", headers={"kid": kid})
    return {"Authorization": f"Bearer {token}"}


async def echo(request: web.Request) -> web.Response:
    return web.json_response(dict(request.headers))


def tokens(jwks: of.Document, **more: object) -> of.Document:
    return {"issuer": ISSUER, "audiences": ["shop", "cart"], "jwks": jwks, **more}


async def test_a_node_takes_requests_with_a_good_token_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(jwks("old"))
    policy = of.policy("who", "virtualNode/v1", jwt=tokens({"file": str(file)}))
    async with shop(tmp_path / "mesh", [policy]) as running:
        one, _ = running.servers
        one.behaviour = echo
        status, text = await running.front.ask(headers=bearer())
        assert status == 200
        assert "Authorization" not in json.loads(text)
        assert (await running.gateway.ask(headers=bearer(aud=["other", "cart"])))[0] == 200
        refused = {
            "missing": {},
            "expired": bearer(exp=1_700_000_000),
            "without an end": bearer(exp=None),
            "of another issuer": bearer(iss="https://other.example"),
            "for somebody else": bearer(aud="other"),
            "signed by another": bearer("old", key="foreign"),
            "of a key that nobody knows": bearer("foreign"),
            "not a token": {"Authorization": "Bearer a.b.c"},
            "unsigned": {"Authorization": f"Bearer {unsigned()}"},
        }
        seen = {name: (await running.front.ask(headers=sent))[0] for name, sent in refused.items()}
        assert seen == {name: 403 if name == "for somebody else" else 401 for name in refused}
        at = running["v1"].only_port
        assert await running["v1"].counter(f"http.cds_ingress_shop_v1_http_{at}.jwt_authn.denied") == len(
            refused
        )
        token = bearer()["Authorization"].removeprefix("Bearer ")
        assert (await running.front.ask(f"/?access_token={token}"))[0] == 401
        assert one.seen == 2


def unsigned() -> str:
    return jwt.encode({"iss": ISSUER, "aud": "shop", "exp": LATER}, "", algorithm="none")


async def test_a_gateway_route_may_let_through_who_has_no_token(tmp_path: Path) -> None:
    keys = {"inline": jwks("old")}
    policies = [
        of.policy("all", "virtualGateway/edge", jwt=tokens(keys)),
        of.policy(
            "some",
            "virtualGateway/edge/gatewayRoute/own",
            jwt=tokens(keys, allowMissing=True, forward=True),
        ),
    ]
    async with shop(tmp_path, policies) as running:
        one, _ = running.servers
        one.behaviour = echo
        assert (await running.gateway.ask("/"))[0] == 401
        assert (await running.gateway.ask("/", headers=bearer()))[0] == 200
        assert (await running.gateway.ask("/own/x"))[0] == 200
        assert (await running.gateway.ask("/own/x", headers=bearer(aud="other")))[0] == 403
        status, text = await running.gateway.ask("/own/x", headers=bearer())
        assert (status, "Authorization" in json.loads(text)) == (200, True)
        assert (await running.front.ask("/"))[0] == 200  # inside, nobody asks


async def test_claims_go_on_in_headers_that_nobody_else_can_set(tmp_path: Path) -> None:
    claims = [{"claim": "sub", "header": "x-subject"}, {"claim": "org.tenant", "header": "x-tenant"}]
    given = tokens({"inline": jwks("old")}, claimHeaders=claims)
    policies = [
        of.policy("all", "virtualGateway/edge", jwt=given),
        of.policy("some", "virtualGateway/edge/gatewayRoute/own", jwt={**given, "allowMissing": True}),
    ]
    async with shop(tmp_path, policies) as running:
        one, _ = running.servers
        one.behaviour = echo

        async def heard(path: str, token: dict[str, str]) -> tuple[str | None, str | None]:
            spoofed = {"x-subject": "root", "x-tenant": "every"}
            status, text = await running.gateway.ask(path, headers={**spoofed, **token})
            assert status == 200
            headers = {name.lower(): value for name, value in json.loads(text).items()}
            return headers.get("x-subject"), headers.get("x-tenant")

        for path in ("/", "/own/x"):
            assert await heard(path, bearer(org={"tenant": "acme"})) == ("jo", "acme")
            assert await heard(path, bearer()) == ("jo", None)
        assert await heard("/own/x", {}) == (None, None)


async def test_keys_behind_an_address_are_fetched_with_tls_and_rotate(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    issuer = Server("issuer", context)
    known = ["old"]

    async def keys(_: web.Request) -> web.Response:
        return web.Response(text=jwks(*known))

    issuer.behaviour = keys
    await issuer.start()
    remote = {
        "uri": f"https://localhost:{issuer.port}/keys",
        "certificateChain": str(tmp_path / "ca.pem"),
        "cacheDuration": {"unit": "s", "value": 1},
    }
    policy = of.policy("who", "virtualNode/v1", jwt=tokens({"remote": remote}))
    try:
        async with shop(tmp_path / "mesh", [policy], **ONCE) as running:

            async def answered(kid: str, status: int) -> None:
                async with asyncio.timeout(30):
                    while (await running.front.ask(headers=bearer(kid)))[0] != status:
                        await asyncio.sleep(0.05)

            assert (await running.front.ask(headers=bearer("old")))[
                0
            ] == 200  # was fetched before it was asked
            assert (await running.front.ask(headers=bearer("new")))[0] == 401
            known[:] = ["new"]
            await answered("new", 200)
            await answered("old", 401)
    finally:
        await issuer.kill()


def shared(requests: int, on_failure: str = "DENY", **more: object) -> of.Document:
    return {"requests": requests, "per": HOUR, "onFailure": on_failure, **more}


async def test_two_proxies_share_a_limit(tmp_path: Path) -> None:
    async with Limits(tmp_path) as limits:
        policies = [limits.policy(), of.policy("few", ROUTE, globalRateLimit=shared(30))]
        async with shop(tmp_path / "mesh", policies) as running:
            one, _ = running.servers
            seen = await asyncio.gather(statuses(running.front, 50), statuses(running.gateway, 50))
            assert seen[0] + seen[1] == {200: 30, 429: 70}
            assert one.seen == 30
            at = running["v1"].only_port
            over = f"cluster.cds_egress_shop_v1_http_{at}.ratelimit.over_limit"
            assert await running["front"].counter(over) == seen[0][429]
            url = running["front"].egress
            async with running.asking.get(url, headers={"Host": "cart.local"}) as answer:
                assert answer.status == 429
                assert 1 <= int(answer.headers["Retry-After"]) <= 120
                assert answer.headers["X-RateLimit-Limit"].startswith("30")
                assert answer.headers["X-RateLimit-Remaining"] == "0"


async def test_each_value_of_a_header_has_a_limit_and_who_leaves_it_out_has_one_too(tmp_path: Path) -> None:
    async with Limits(tmp_path) as limits:
        limit = shared(5, key={"header": "x-tenant"})
        policies = [limits.policy(), of.policy("few", "virtualNode/v1", globalRateLimit=limit)]
        async with shop(tmp_path / "mesh", policies) as running:

            async def through(client: Client, **headers: str) -> int:
                answers = [await client.ask(headers=headers) for _ in range(10)]
                return sum(status == 200 for status, _ in answers)

            assert await through(running.front, **{"x-tenant": "acme"}) == 5
            assert await through(running.gateway, **{"x-tenant": "acme"}) == 0
            assert await through(running.gateway, **{"x-tenant": "zoo"}) == 5
            assert await through(running.front) == 5
            assert await through(running.front) == 0


async def test_who_comes_from_one_address_is_counted_at_a_gateway_whatever_it_says(tmp_path: Path) -> None:
    async with Limits(tmp_path) as limits:
        limit = shared(5, key={"remoteAddress": {}})
        policies = [limits.policy(), of.policy("few", "virtualGateway/edge", globalRateLimit=limit)]
        async with shop(tmp_path / "mesh", policies) as running:
            answers = [
                await running.gateway.ask(headers={"X-Forwarded-For": f"10.0.0.{index}"})
                for index in range(10)
            ]
            assert [status for status, _ in answers] == [200] * 5 + [429] * 5


async def test_each_subject_of_tokens_has_a_limit_whatever_it_says_it_is(tmp_path: Path) -> None:
    async with Limits(tmp_path) as limits:
        claims = [{"claim": "sub", "header": "x-subject"}]
        policies = [
            limits.policy(),
            of.policy(
                "each",
                "virtualGateway/edge",
                jwt=tokens({"inline": jwks("old")}, claimHeaders=claims),
                globalRateLimit=shared(3, key={"header": "x-subject"}),
            ),
        ]
        async with shop(tmp_path / "mesh", policies) as running:
            for subject in ("jo", "ann"):
                sent = [{**bearer(sub=subject), "x-subject": f"other-{index}"} for index in range(6)]
                seen = [(await running.gateway.ask(headers=headers))[0] for headers in sent]
                assert seen == [200] * 3 + [429] * 3


async def test_a_policy_says_what_happens_while_nobody_counts(tmp_path: Path) -> None:
    limits = Limits(tmp_path)
    own = "virtualGateway/edge/gatewayRoute/own"
    policies = [
        limits.policy(timeout={"unit": "ms", "value": 200}),
        of.policy("all", "virtualGateway/edge", globalRateLimit=shared(1000)),
        of.policy("own", own, globalRateLimit=shared(1000, "ALLOW")),
    ]
    async with shop(tmp_path / "mesh", policies) as running:
        assert (await running.gateway.ask("/"))[0] == 503
        assert (await running.gateway.ask("/own/x"))[0] == 200
        async with limits, asyncio.timeout(30):
            while (await running.gateway.ask("/"))[0] != 200:
                await asyncio.sleep(0.05)
        assert (await running.gateway.ask("/"))[0] == 503


async def test_two_services_share_limits_through_valkey(tmp_path: Path) -> None:
    valkey = ValkeyServer(tmp_path)
    valkey.start()
    try:
        async with (
            Limits(tmp_path, "--valkey", valkey.url, "--node", "a", "--nodes", "2") as first,
            Limits(tmp_path, "--valkey", valkey.url, "--node", "b", "--nodes", "2") as second,
        ):
            few = of.policy("few", ROUTE, globalRateLimit=shared(40))
            async with (
                shop(tmp_path / "first", [first.policy(), few]) as one,
                shop(tmp_path / "second", [second.policy(), few]) as other,
            ):
                seen = await asyncio.gather(statuses(one.front, 60), statuses(other.front, 60))
    finally:
        valkey.stop()
    let_through = seen[0][200] + seen[1][200]
    # Each may hold what it has leased, a tenth of the burst, while the other is refused. On a machine that is
    # busy with other things Valkey may answer too late, which allows one burst more.
    outages = first.times("valkey_away") + second.times("valkey_away")
    assert 40 - 2 * 4 <= let_through <= 40 * (1 + outages)
    assert seen[0][200]
    assert seen[1][200]


async def test_limits_are_served_to_proxies_with_a_certificate_alone(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    for name in ("127.0.0.1", "proxy.local"):
        made = authority.issue_cert(name)
        made.cert_chain_pems[0].write_to_path(tmp_path / f"{name}.pem")
        made.private_key_pem.write_to_path(tmp_path / f"{name}.key")
    files = ["--certificate", "127.0.0.1.pem", "--key", "127.0.0.1.key", "--ca", "ca.pem"]
    options = [each if each.startswith("--") else str(tmp_path / each) for each in files]
    own = {
        "file": {
            "certificateChain": str(tmp_path / "proxy.local.pem"),
            "privateKey": str(tmp_path / "proxy.local.key"),
        }
    }
    tls: of.Document = {"validation": {"trust": {"file": {"certificateChain": str(tmp_path / "ca.pem")}}}}
    few = of.policy("few", ROUTE, globalRateLimit=shared(5))
    async with Limits(tmp_path, *options) as limits:
        shown = limits.policy(clientPolicy={"tls": {**tls, "certificate": own}})
        async with shop(tmp_path / "shown", [shown, few]) as running:
            assert await statuses(running.front, 10) == {200: 5, 429: 5}
        hidden = limits.policy(clientPolicy={"tls": tls})
        async with shop(tmp_path / "hidden", [hidden, few]) as running:
            assert await statuses(running.front, 10) == {503: 10}


async def test_calls_of_grpc_hear_statuses_of_grpc(tmp_path: Path) -> None:
    ports = {"v1": port(), "v2": port()}
    kinds: dict[str, of.Document] = {
        "Limited": {"localRateLimit": {"requests": 1, "per": HOUR}},
        "Broken": {"faults": {"abort": {"status": 503, "percent": 100}}},
        "Secret": {"jwt": tokens({"inline": jwks("old")})},
        "Copied": {"mirror": {"virtualNode": "v2"}},
    }
    documents = [
        of.mesh(),
        of.node("front", 8080, protocol="grpc", backends=("cart.local",)),
        of.service("cart.local", router="cart"),
        of.router("cart", 80, "grpc"),
        *[of.node(name, at, protocol="grpc") for name, at in ports.items()],
        *[
            of.route("cart", kind, {"v1": 1}, kind="grpcRoute", match={"serviceName": f"shop.{kind}"})
            for kind in kinds
        ],
        *[of.policy(kind, f"virtualRouter/cart/route/{kind}", **said) for kind, said in kinds.items()],
    ]
    snapshot = of.snapshot(tmp_path, *documents)
    async with grpc_server(b"a") as one, grpc_server(b"b") as two:
        applications: dict[str, dict[int, int]] = {
            "front": {},
            "v1": {ports["v1"]: one},
            "v2": {ports["v2"]: two},
        }
        async with envoys(tmp_path, snapshot, applications) as running:
            options = [("grpc.default_authority", "cart.local")]
            egress = f"127.0.0.1:{running['front'].proxy.egress_port}"
            async with grpc.aio.insecure_channel(egress, options) as channel:

                async def status(kind: str, metadata: dict[str, str]) -> str:
                    call = channel.unary_unary(f"/shop.{kind}/Get")(
                        b"", metadata=[(name.lower(), value) for name, value in metadata.items()], timeout=30
                    )
                    return str((await call.code()).name)

                assert [await status("Limited", {}) for _ in range(2)] == ["OK", "RESOURCE_EXHAUSTED"]
                assert await status("Broken", {}) == "UNAVAILABLE"
                assert await status("Secret", {}) == "UNAUTHENTICATED"
                assert await status("Secret", bearer()) == "OK"
                assert await status("Copied", {}) == "OK"
                copies = "cluster.cds_egress_shop_v2_grpc_" + str(ports["v2"]) + ".upstream_rq_completed"
                async with asyncio.timeout(30):
                    while not await running["front"].counter(copies):
                        await asyncio.sleep(0.05)
