"""What the services share: nobody without a passport, strict decoding, and a document that says the same."""

from __future__ import annotations

import asyncio
import enum
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter

from commands.service import Name, operations_of
from ingest.pki import DevelopmentCa
from routing.tenancy.identity import Unauthenticated
from runtime.logs import make_log
from services.web import openapi, page
from services.web.app import make_app
from services.web.operations import Asked, Content, NoBody, NoQuery, Operations, Reply, Streamed
from services.web.page import Page, PageQuery
from services.web.passport import Caller, PassportError, PassportVerifier
from services.web.refusal import Refused, not_found
from tests.support.gateway import free_port
from tests.support.passports import Passports


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Query(PageQuery, frozen=True, kw_only=True):
    colour: Colour = Colour.RED
    names: Annotated[list[str], msgspec.Meta(description="Whose.")] = msgspec.field(default_factory=list)


class Thing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=8)]
    size: int = 0


class Seen(msgspec.Struct, frozen=True):
    caller: str
    query: Any = None
    body: Any = None


class Toy:
    """A service with one operation of each sort."""

    async def find(self, asked: Asked[Query, NoBody]) -> Reply:
        return Reply(Seen(asked.caller.name, query=msgspec.to_builtins(asked.query)))

    async def make(self, asked: Asked[NoQuery, Thing]) -> Reply:
        return Reply(Seen(asked.caller.name, body=asked.body), status=201, headers={"ETag": '"1"'})

    async def lose(self, asked: Asked[NoQuery, NoBody]) -> Reply:
        if asked.path["device"] == "broken":
            raise RuntimeError("a secret")
        raise not_found(f"device {asked.path['device']}")

    async def take(self, asked: Asked[NoQuery, Streamed]) -> web.StreamResponse:
        lines = [line async for line in asked.request.content]
        return web.Response(text=str(len(lines)))


def toys() -> Operations[Toy]:
    operations: Operations[Toy] = Operations("Toy", description="A toy.", patterns={"device": "[a-z]{1,9}"})
    things = "/v1/tenants/{tenant}/things"
    operations.add(
        "GET",
        things,
        Toy.find,
        name="find",
        summary="Find.",
        tag="things",
        scope="things:read",
        query=Query,
        answers={200: Seen},
    )
    operations.add(
        "POST",
        things,
        Toy.make,
        name="make",
        summary="Make.",
        tag="things",
        scope="things:write",
        body=Thing,
        body_bytes_max=64,
        answers={201: Seen},
        refusals={409: "It is there."},
    )
    operations.add(
        "DELETE",
        "/v1/tenants/{tenant}/devices/{device}",
        Toy.lose,
        name="lose",
        summary="Lose.",
        tag="things",
        scope="things:write",
        answers={204: None},
        refusals={404: "There is none."},
    )
    operations.add(
        "POST",
        "/v1/tenants/{tenant}/streams",
        Toy.take,
        name="take",
        summary="Take.",
        tag="things",
        scope="things:write",
        body=Streamed,
        body_types=("application/x-ndjson",),
        answers={200: Content("How many.", {"text/plain": None})},
    )
    return operations


@pytest.fixture
def passports(tmp_path: Path) -> Passports:
    return Passports(tmp_path / "passport.pub")


@pytest.fixture
def draining() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
async def client(passports: Passports, draining: asyncio.Event) -> AsyncIterator[TestClient[Any, Any]]:
    verifier = PassportVerifier(passports.path, audience="toy")
    verifier.poll()
    app = make_app(toys(), Toy(), verifier, draining=draining, log=make_log("error", "json"))
    headers = passports.headers("toy", tenant="acme", scopes="things:read things:write")
    async with TestClient(TestServer(app), headers=headers) as opened:
        yield opened


async def refusal(response: aiohttp.ClientResponse) -> tuple[int, str, str]:
    assert response.content_type == "application/problem+json"
    body = await response.json(content_type=None)
    assert body["status"] == response.status
    return response.status, body["type"].removeprefix("urn:headworks:problem:"), body["detail"]


THINGS = "/v1/tenants/acme/things"


async def test_a_request_is_decoded_and_answered(client: TestClient[Any, Any]) -> None:
    response = await client.get(f"{THINGS}?limit=7&colour=blue&names=a&names=b")
    assert response.status == 200
    seen = await response.json()
    assert seen["query"] == {"limit": 7, "cursor": "", "colour": "blue", "names": ["a", "b"]}
    response = await client.post(THINGS, json={"name": "x"})
    assert (response.status, response.headers["ETag"]) == (201, '"1"')
    assert (await response.json())["body"] == {"name": "x", "size": 0}
    response = await client.post(
        "/v1/tenants/acme/streams",
        data=b"{}\n" * 3,
        headers={"Content-Type": "application/x-ndjson; charset=utf-8"},
    )
    assert await response.text() == "3"


async def test_metrics_need_no_passport_and_are_there_only_where_something_is_counted(
    client: TestClient[Any, Any], passports: Passports
) -> None:
    assert (await refusal(await client.get("/metrics")))[0] == 404
    registry = CollectorRegistry()
    Counter("toys", "Toys", registry=registry).inc()
    verifier = PassportVerifier(passports.path, audience="toy")
    app = make_app(
        toys(), Toy(), verifier, draining=asyncio.Event(), log=make_log("error", "json"), metrics=registry
    )
    async with TestClient(TestServer(app)) as counting:
        response = await counting.get("/metrics")
        assert response.status == 200
        assert "toys_total 1.0" in (await response.text()).splitlines()


async def test_health_needs_no_passport_and_tells_of_the_drain(
    client: TestClient[Any, Any], draining: asyncio.Event
) -> None:
    response = await client.get("/healthz", headers={"X-Headworks-Identity": ""})
    assert response.status == 200
    draining.set()
    response = await client.get("/healthz")
    assert (await refusal(response))[:2] == (503, "draining")
    response = await client.get(THINGS)
    assert (response.status, response.headers["Connection"]) == (200, "close")


@pytest.mark.parametrize(
    "wrong",
    [
        {"aud": "others"},
        {"iss": "others"},
        {"exp": 1},
        {"exp": None},
        {"sub": None},
        {"sub": 7},
        {"tenant": ["acme"]},
        {"scopes": 1},
    ],
    ids=str,
)
async def test_a_wrong_passport_is_refused(
    client: TestClient[Any, Any], passports: Passports, wrong: dict[str, Any]
) -> None:
    claims = {"tenant": "acme", "scopes": "things:read", **wrong}
    headers = passports.headers("toy", **claims)
    for path in (THINGS, "/nowhere"):
        status, slug, detail = await refusal(await client.get(path, headers=headers))
        assert (status, slug) == (401, "unauthenticated")
        assert headers["X-Headworks-Identity"] not in detail


@pytest.mark.parametrize("passport", ["", "x", "a.b.c", "é"])
async def test_what_is_no_passport_is_refused(client: TestClient[Any, Any], passport: str) -> None:
    headers = {"X-Headworks-Identity": passport}
    assert (await refusal(await client.get(THINGS, headers=headers)))[0] == 401


async def test_a_passport_of_another_key_is_refused(client: TestClient[Any, Any], tmp_path: Path) -> None:
    forged = Passports(tmp_path / "other.pub").headers("toy", tenant="acme", scopes="things:read")
    assert (await refusal(await client.get(THINGS, headers=forged)))[0] == 401


@pytest.mark.parametrize(
    ("tenant", "scopes", "device", "method", "path", "slug"),
    [
        ("acme", "things:write", "", "GET", THINGS, "missing-scope"),
        ("acme", "", "", "GET", THINGS, "missing-scope"),
        ("other", "things:read", "", "GET", THINGS, "foreign-tenant"),
        ("", "things:read", "", "GET", THINGS, "foreign-tenant"),
        ("acme", "things:read", "pump", "GET", THINGS, "foreign-device"),
        ("acme", "things:write", "pump", "DELETE", "/v1/tenants/acme/devices/valve", "foreign-device"),
        ("acme", "things:write", "pump", "DELETE", "/v1/tenants/acme/devices/pump", "not-found"),
        ("*", "things:write", "", "DELETE", "/v1/tenants/acme/devices/valve", "not-found"),
    ],
)
async def test_scope_tenant_and_device_are_checked(
    client: TestClient[Any, Any],
    passports: Passports,
    tenant: str,
    scopes: str,
    device: str,
    method: str,
    path: str,
    slug: str,
) -> None:
    headers = passports.headers("toy", tenant=tenant, scopes=scopes, device=device)
    response = await client.request(method, path, headers=headers)
    assert (await refusal(response))[1] == slug


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("limit=1&limit=2", "limit"),
        ("colour=green", "colour"),
        ("unknown=1", "unknown"),
        ("cursor=" + "x" * 1025, "cursor"),
    ],
)
async def test_a_wrong_parameter_is_refused_by_name(
    client: TestClient[Any, Any], query: str, names: str
) -> None:
    status, slug, detail = await refusal(await client.get(f"{THINGS}?{query}"))
    assert (status, slug) == (400, "invalid-request")
    assert names in detail


@pytest.mark.parametrize(
    ("body", "slug", "names"),
    [
        (b'{"name": "x", "sise": 1}', "invalid-request", "sise"),
        (b'{"size": 1}', "invalid-request", "name"),
        (b'{"name": "", "size": 1}', "invalid-request", "name"),
        (b'{"name": "x", "size": "secret"}', "invalid-request", "size"),
        (b'{"name": "x", "size": 1.5}', "invalid-request", "size"),
        (b"[]", "invalid-request", "object"),
        (b"", "malformed-json", "JSON"),
        (b"{", "malformed-json", "JSON"),
        (b'{"name": "\xff"}', "malformed-json", "JSON"),
    ],
)
async def test_a_wrong_body_is_refused_by_name(
    client: TestClient[Any, Any], body: bytes, slug: str, names: str
) -> None:
    response = await client.post(THINGS, data=body, headers={"Content-Type": "application/json"})
    status, found, detail = await refusal(response)
    assert (status, found) == (400, slug)
    assert names.lower() in detail.lower()
    assert "secret" not in detail


async def test_an_integer_may_be_written_with_a_point(client: TestClient[Any, Any]) -> None:
    body = b'{"name": "x", "size": 2.0}'
    response = await client.post(THINGS, data=body, headers={"Content-Type": "application/json"})
    assert response.status == 201
    assert (await response.json())["body"] == {"name": "x", "size": 2}


async def test_a_body_of_another_type_or_too_large_is_refused(client: TestClient[Any, Any]) -> None:
    response = await client.post(THINGS, data=b"{}", headers={"Content-Type": "text/plain"})
    assert (await refusal(response))[:2] == (415, "unsupported-media-type")
    large = json.dumps({"name": "x", "size": 1}).encode() + b" " * 64
    response = await client.post(THINGS, data=large, headers={"Content-Type": "application/json"})
    assert (await refusal(response))[:2] == (413, "body-too-large")

    async def pieces() -> AsyncIterator[bytes]:
        yield large

    response = await client.post(THINGS, data=pieces(), headers={"Content-Type": "application/json"})
    assert (await refusal(response))[:2] == (413, "body-too-large")
    response = await client.delete("/v1/tenants/acme/devices/pump", data=b"x")
    assert (await refusal(response))[:2] == (413, "body-too-large")


async def test_a_wrong_path_is_refused(client: TestClient[Any, Any]) -> None:
    assert (await refusal(await client.get("/nowhere")))[:2] == (404, "not-found")
    response = await client.put(THINGS)
    assert (await refusal(response))[:2] == (405, "method-not-allowed")
    assert response.headers["Allow"] == "GET, POST"
    response = await client.delete("/v1/tenants/acme/devices/PUMP")
    assert "device" in (await refusal(response))[2]


async def test_a_fault_of_ours_is_said_to_be_ours_and_tells_nothing(client: TestClient[Any, Any]) -> None:
    status, slug, detail = await refusal(await client.delete("/v1/tenants/acme/devices/broken"))
    assert (status, slug) == (500, "internal")
    assert "secret" not in detail


def test_the_key_of_passports_is_read_when_it_comes_and_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "passport.pub"
    verifier = PassportVerifier(path, audience="toy")
    with pytest.raises(PassportError, match="makes it"):
        verifier.poll()
    with pytest.raises(Unauthenticated, match="not known yet"):
        verifier.caller("a.b.c", 0.0)
    old = Passports(path).passport("toy", tenant="acme")
    verifier.poll()
    assert verifier.caller(old, 0.0) == Caller(
        tenant="acme", name="tester", scopes=frozenset(), credential="api_key", fingerprint="f00"
    )
    with pytest.raises(Unauthenticated, match="no sense"):
        verifier.caller("x" * 8193, 0.0)
    path.unlink()
    new = Passports(path).passport("toy", tenant="acme")
    verifier.poll()
    assert verifier.caller(new, 0.0).tenant == "acme"
    with pytest.raises(Unauthenticated):
        verifier.caller(old, 0.0)
    path.write_text("not a key")
    with pytest.raises(PassportError, match="cannot read"):
        verifier.poll()
    assert verifier.caller(new, 0.0).tenant == "acme", "the last good key stays"


def test_a_passport_that_is_remembered_ends_all_the_same(passports: Passports) -> None:
    verifier = PassportVerifier(passports.path, audience="toy")
    verifier.poll()
    passport = passports.passport("toy", tenant="acme", exp=4_000_000_000)
    verifier.caller(passport, 0.0)
    assert verifier.caller(passport, 4_000_000_004).tenant == "acme"
    ends = verifier._remembered[passport][1]
    assert ends == 4_000_000_005


def test_the_document_says_what_is_decoded() -> None:
    found = openapi.document(toys())
    assert found["openapi"] == "3.1.0"
    find = found["paths"]["/v1/tenants/{tenant}/things"]["get"]
    by_name = {each["name"]: each for each in find["parameters"]}
    assert by_name["tenant"]["schema"]["pattern"].startswith("^")
    assert by_name["limit"]["schema"] == {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
    assert by_name["colour"]["schema"]["enum"] == ["blue", "red"]
    assert find["x-headworks-scope"] == "things:read"
    make = found["paths"]["/v1/tenants/{tenant}/things"]["post"]
    assert set(make["responses"]) == {"201", "400", "401", "403", "409", "413", "415", "422"}
    body = make["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/Thing"}
    assert found["components"]["schemas"]["Thing"]["additionalProperties"] is False
    assert openapi.encoded(toys()) == openapi.encoded(toys())


def test_pages_lead_from_one_to_the_next() -> None:
    first = page.page_of([1, 2, 3], 2, key=lambda item: item)
    assert (first.items, page.key_of(first.next, int)) == ([1, 2], 2)
    assert page.page_of([3], 2, key=lambda item: item) == Page([3], "")
    assert page.key_of("", int) is None


@given(st.text(max_size=40))
def test_a_cursor_that_is_none_is_refused(text: str) -> None:
    try:
        key = page.key_of(text, tuple[str, int])
    except Refused as refused:
        assert refused.slug == "invalid-cursor"  # noqa: PT017  # either it is one, or it is refused
    else:
        assert key is None or isinstance(key[0], str)


def test_a_service_runs_until_it_is_told_to_end(tmp_path: Path) -> None:
    port = free_port()
    DevelopmentCa.create(tmp_path / "pki")
    config = tmp_path / "services.toml"
    config.write_text(
        f'[service]\ndata_dir = "{tmp_path}"\n'
        f'[device]\nbind = "127.0.0.1:{port}"\nca_dir = "{tmp_path}/pki"\n'
    )
    command = [sys.executable, "-m", "commands.cli", "service", "device", "--config", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        lines = []
        for line in running.stderr:
            lines.append(line)
            if "service_started" in line:
                break
        running.send_signal(signal.SIGTERM)
        lines += running.stderr.readlines()
        assert running.wait(20) == 0, lines
    assert "service_stopped" in lines[-1]


def test_a_service_that_cannot_start_says_why_in_one_line(tmp_path: Path) -> None:
    config = tmp_path / "services.toml"
    command = [sys.executable, "-m", "commands.cli", "service", "device", "--config", str(config)]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        text = f'[service]\ndata_dir = "{tmp_path}"\n[device]\nbind = "127.0.0.1:{port}"\n'
        for more, why in (("", "device.ca_dir"), (f'ca_dir = "{tmp_path}/pki"\n', "there is no CA")):
            config.write_text(text + more)
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            assert done.returncode == 1
            assert why in done.stderr.splitlines()[-1]
        DevelopmentCa.create(tmp_path / "pki")
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 1
        assert f"cannot listen on 127.0.0.1:{port}" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", Name, ids=lambda name: name.value)
def test_the_document_that_is_checked_in_is_current(name: Name) -> None:
    path = Path(__file__).parents[2] / "services/openapi" / f"{name.value}.json"
    made = openapi.encoded(operations_of(name))
    assert path.read_bytes() == made, (
        f"run: headworks service openapi {name.value} > services/openapi/{path.name}"
    )


def test_wrong_settings_are_one_line_with_the_place(tmp_path: Path) -> None:
    config = tmp_path / "services.toml"
    config.write_text('[service]\ndata_dir = "x"\n[device]\nbind = "nonsense"\n')
    command = [sys.executable, "-m", "commands.cli", "service", "device", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert f"{config}:4: device.bind" in done.stderr
