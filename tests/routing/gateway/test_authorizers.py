"""Who calls the API: tokens whose keys rotate, API keys, certificates over TLS, a service that is asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import msgspec
import pytest
import trustme
from aiohttp import web
from aiohttp.test_utils import TestServer, make_mocked_request
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from multidict import CIMultiDict

from routing.gateway.authorizers import AuthorizerDown, Authorizers, Suspended, _Certificates
from routing.gateway.routes_file import Authorizer
from routing.tenancy.certificate import CertificateNames
from routing.tenancy.identity import Credential, Kind, Unauthenticated
from routing.tenancy.jwt import JwksError
from routing.tenancy.principal import Principal
from routing.tenancy.registry import Registry, Status

NOW_S = 1_800_000_000.0
HEARD_WITHIN_S = 20.0
KEYS: dict[str, tuple[Any, Any]] = {
    "RS256": (rsa.generate_private_key(65537, 2048), RSAAlgorithm),
    "ES256": (ec.generate_private_key(ec.SECP256R1()), ECAlgorithm),
    "EdDSA": (ed25519.Ed25519PrivateKey.generate(), OKPAlgorithm),
}
CLAIMS: dict[str, Any] = {
    "tenant": "t",
    "sub": "jo@example.org",
    "scope": "devices:read telemetry:read openid",
    "exp": 4_000_000_000,
    "aud": "headworks",
    "iss": "https://issuer.example",
}


def jwks(*names: str) -> bytes:
    keys = [
        {**json.loads(KEYS[name][1].to_jwk(KEYS[name][0].public_key())), "kid": name, "alg": name}
        for name in names
    ]
    return msgspec.json.encode({"keys": keys})


def token(algorithm: str = "ES256", *, kid: str = "", key: Any = None, **claims: Any) -> str:
    said = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode(said, key or KEYS[algorithm][0], algorithm=algorithm, headers={"kid": kid or algorithm})


def request(*headers: tuple[str, str], path: str = "/v1/devices", method: str = "GET") -> web.Request:
    return make_mocked_request(method, path, headers=CIMultiDict(headers))


def bearer(text: str) -> web.Request:
    return request(("Authorization", f"Bearer {text}"))


class Rig:
    """Authorizers with a registry, whose clock the test turns."""

    def __init__(self, folder: Path, **authorizers: Authorizer) -> None:
        self.registry = Registry(folder / "registry.db")
        self.now_s = NOW_S
        self.revoked: set[str] = set()
        self.heard: asyncio.Queue[tuple[str, str | None]] = asyncio.Queue()
        self.authorizers = Authorizers(
            authorizers,
            registry=self.registry,
            names=CertificateNames("example.org"),
            is_revoked=self.revoked.__contains__,
            now_s=lambda: self.now_s,
            keys_fetched=lambda name, wrong: self.heard.put_nowait((name, wrong)),
            refetch_s=0.0,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(self.authorizers.run())
            yield
            assert not task.done()
            task.cancel()

    async def next_heard(self) -> tuple[str, str | None]:
        async with asyncio.timeout(HEARD_WITHIN_S):
            return await self.heard.get()

    async def who(self, shown: web.BaseRequest, *names: str) -> Principal:
        return await self.authorizers.identify(names or list(self.authorizers._ways), shown)

    async def refused(self, shown: web.BaseRequest, *names: str) -> str:
        with pytest.raises(Unauthenticated) as refused:
            await self.who(shown, *names)
        return str(refused.value)


@pytest.fixture
async def tokens(tmp_path: Path) -> Rig:
    (tmp_path / "jwks.json").write_bytes(jwks(*KEYS))
    return Rig(tmp_path, jwt=of_tokens(tmp_path))


def of_tokens(folder: Path, **fields: Any) -> Authorizer:
    return Authorizer(
        kind="jwt",
        jwks_file=str(folder / "jwks.json"),
        issuer="https://issuer.example",
        audience="headworks",
        **fields,
    )


@pytest.mark.parametrize("algorithm", KEYS)
async def test_a_token_names_a_caller(tokens: Rig, algorithm: str) -> None:
    assert await tokens.who(bearer(token(algorithm, jti="7", plan="gold"))) == Principal(
        tenant="t",
        name="jo@example.org",
        scopes=frozenset({"devices:read", "telemetry:read"}),
        credential=Credential.JWT,
        fingerprint="7",
        plan="gold",
        expires_s=4_000_000_030.0,
    )


@pytest.mark.parametrize(
    ("claim", "scopes"),
    [
        ("a:b  c:d", {"a:b", "c:d"}),
        (["a:b", "c:d", "*", "a:b c:d"], {"a:b", "c:d"}),
        ([], set()),
        ("", set()),
        (None, set()),
        ("*", set()),
    ],
)
async def test_scopes_are_text_or_a_list(tokens: Rig, claim: Any, scopes: set[str]) -> None:
    assert (await tokens.who(bearer(token(scope=claim)))).scopes == scopes


@pytest.mark.parametrize(
    "claims",
    [
        {"tenant": None},
        {"tenant": "*"},
        {"tenant": ["t"]},
        {"tenant": "a/b"},
        {"sub": None},
        {"sub": ""},
        {"sub": "a\nb"},
        {"sub": "x" * 257},
        {"scope": 7},
        {"scope": {"a:b": 1}},
        {"scope": [["a:b"]]},
        {"scope": [f"a{number}:read" for number in range(65)]},
        {"plan": 7},
        {"exp": None},
        {"exp": 1},
        {"aud": "others"},
        {"iss": "https://others.example"},
        {"nbf": 3_999_999_999},
    ],
)
async def test_claims_that_do_not_fit_are_refused(tokens: Rig, claims: dict[str, Any]) -> None:
    shown = token(**claims)
    assert shown not in await tokens.refused(bearer(shown))


@pytest.mark.parametrize(
    "shown",
    [
        token(kid="nobody"),
        token(key=ec.generate_private_key(ec.SECP256R1())),
        token("ES256", kid="RS256"),
        jwt.encode(CLAIMS, "0" * 32, algorithm="HS256", headers={"kid": "ES256"}),
        jwt.encode(CLAIMS, "", algorithm="none", headers={"kid": "ES256"}),
        token()[:-4],
        "not.a.token",
        "x",
    ],
)
async def test_a_token_that_proves_nothing_is_refused_and_not_repeated(tokens: Rig, shown: str) -> None:
    assert shown not in (await tokens.refused(bearer(shown))).split()


@pytest.mark.parametrize("claim", ["*", "**", "* ", "t*", ["*"]])
async def test_an_operator_is_one_only_where_the_authorizer_allows_it(tmp_path: Path, claim: Any) -> None:
    (tmp_path / "jwks.json").write_bytes(jwks("ES256"))
    rig = Rig(tmp_path, jwt=of_tokens(tmp_path), ops=of_tokens(tmp_path, operators=True))
    shown = bearer(token(tenant=claim))
    assert "tenant" in await rig.refused(shown, "jwt")
    if claim == "*":
        assert (await rig.who(shown, "ops")).may_act_for("anybody")
    else:
        assert "tenant" in await rig.refused(shown, "ops")


async def test_claims_have_the_names_that_the_authorizer_says(tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_bytes(jwks("ES256"))
    rig = Rig(
        tmp_path, jwt=of_tokens(tmp_path, tenant_claim="org", name_claim="email", scope_claim="permissions")
    )
    shown = token(tenant="x", org="t", email="jo", permissions=["a:b"])
    who = await rig.who(bearer(shown))
    assert (who.tenant, who.name, who.scopes) == ("t", "jo", frozenset({"a:b"}))


class Server:
    """A server on the loopback that answers as it is told, and notes what it was asked."""

    def __init__(self) -> None:
        self.answer: Callable[[web.Request], Awaitable[web.Response]] = says(jwks("ES256"))
        self.asked: list[Any] = []
        self.over = asyncio.Event()
        self.url = ""

    async def handle(self, asked: web.Request) -> web.Response:
        self.asked.append(await asked.read())
        return await self.answer(asked)


def says(body: bytes, status: int = 200) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def answer(asked: web.Request) -> web.Response:
        del asked
        return web.Response(body=body, status=status)

    return answer


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    made = Server()
    app = web.Application()
    app.router.add_route("*", "/asked", made.handle)
    listening = TestServer(app, host="127.0.0.1")
    await listening.start_server()
    made.url = str(listening.make_url("/asked"))
    yield made
    made.over.set()
    await listening.close()


async def test_keys_rotate_while_requests_go_on(tmp_path: Path, server: Server) -> None:
    rig = Rig(tmp_path, jwt=Authorizer(kind="jwt", jwks_url=server.url, audience="headworks"))
    with pytest.raises(AuthorizerDown):
        await rig.who(bearer(token()))
    async with rig.running():
        assert await rig.next_heard() == ("jwt", None)
        assert (await rig.who(bearer(token()))).name == "jo@example.org"
        server.answer = says(jwks("ES256", "RS256"))
        assert "not known" in await rig.refused(bearer(token("RS256")))
        assert await rig.next_heard() == ("jwt", None)
        for algorithm in ("RS256", "ES256"):
            await rig.who(bearer(token(algorithm)))
        server.answer = says(jwks("RS256"))
        assert "not known" in await rig.refused(bearer(token("EdDSA")))
        assert await rig.next_heard() == ("jwt", None)
        assert "not known" in await rig.refused(bearer(token("ES256")))


async def test_the_last_good_keys_stay_when_their_server_is_broken(tmp_path: Path, server: Server) -> None:
    rig = Rig(
        tmp_path, jwt=Authorizer(kind="jwt", jwks_url=server.url, audience="headworks", refresh_s=3600.0)
    )
    async with rig.running():
        assert await rig.next_heard() == ("jwt", None)
        server.answer = says(b"down", 500)
        await rig.refused(bearer(token("RS256")))
        name, wrong = await rig.next_heard()
        assert name == "jwt"
        assert wrong is not None
        await rig.who(bearer(token()))


async def test_authorizers_are_replaced_while_they_run(tmp_path: Path, server: Server) -> None:
    first = Authorizer(kind="jwt", jwks_url=server.url, audience="headworks")
    rig = Rig(tmp_path, jwt=first, gone=first)
    async with rig.running():
        heard = {(await rig.next_heard())[0] for _ in range(2)}
        assert heard == {"jwt", "gone"}
        rig.authorizers.replace({"jwt": first, "other": first})
        await rig.who(bearer(token()), "jwt")
        assert await rig.next_heard() == ("other", None)
        await rig.who(bearer(token()), "other")
        assert "nobody may" in await rig.refused(bearer(token()), "gone")
        with pytest.raises(JwksError):
            rig.authorizers.replace({"jwt": Authorizer(kind="jwt", jwks_file=str(tmp_path / "none"))})
        await rig.who(bearer(token()), "jwt")
        assert len(server.asked) == 3, "what did not change was not fetched again"


@pytest.fixture
async def keys(tmp_path: Path) -> Rig:
    return Rig(tmp_path, api_key=Authorizer(kind="api_key"))


async def test_an_api_key_comes_in_either_header(keys: Rig) -> None:
    key, secret = keys.registry.issue_key("t", "backend", Kind.CALLER, 1.0, None, scopes=["a:b"], plan="gold")
    for shown in (
        request(("X-API-Key", secret)),
        bearer(secret),
        request(("authorization", f"bearer {secret}")),
    ):
        assert await keys.who(shown) == Principal(
            tenant="t",
            name="backend",
            scopes=frozenset({"a:b"}),
            credential=Credential.API_KEY,
            fingerprint=key.id,
            plan="gold",
        )
    keys.registry.flush_use()
    found = keys.registry.key(key.id)
    assert found is not None
    assert found.last_used_s == NOW_S


async def test_the_key_of_a_device_is_that_device(keys: Rig) -> None:
    _, secret = keys.registry.issue_key("t", "d", Kind.DEVICE, 1.0, None)
    assert (await keys.who(bearer(secret))).device == "d"
    _, secret = keys.registry.issue_key("t", "g", Kind.GATEWAY, 1.0, None)
    assert not (await keys.who(bearer(secret))).device


async def test_a_key_that_is_wrong_revoked_or_over_is_refused(keys: Rig) -> None:
    key, secret = keys.registry.issue_key("t", "jo", Kind.CALLER, 1.0, expires_s=NOW_S + 1)
    await keys.who(bearer(secret))
    for wrong in (secret[:-1], secret + "0", "hw_", f"hw_{key.id}_", "é" + secret, "x" * 9000):
        said = await keys.refused(request(("X-API-Key", wrong)))
        assert secret not in said
        assert wrong not in said
    keys.now_s += 1
    await keys.refused(bearer(secret))
    keys.now_s -= 1
    keys.registry.revoke_key(key.id)
    await keys.refused(bearer(secret))


async def test_an_operators_key_is_good_only_where_operators_are_expected(tmp_path: Path) -> None:
    rig = Rig(tmp_path, keys=Authorizer(kind="api_key"), ops=Authorizer(kind="api_key", operators=True))
    _, secret = rig.registry.issue_key("*", "root", Kind.CALLER, 1.0, None)
    await rig.refused(bearer(secret), "keys")
    assert (await rig.who(bearer(secret), "ops")).tenant == "*"


@pytest.mark.parametrize("header", ["X-API-Key", "Authorization"])
async def test_two_of_one_header_are_refused(keys: Rig, header: str) -> None:
    _, secret = keys.registry.issue_key("t", "jo", Kind.CALLER, 1.0, None)
    value = secret if header == "X-API-Key" else f"Bearer {secret}"
    assert header in await keys.refused(request((header, value), (header, value)))


@pytest.mark.parametrize("text", ["", "Bearer", "Bearer ", "Basic aHdfOng=", "hw_a_b"])
async def test_a_request_without_a_credential_hears_what_to_bring(keys: Rig, text: str) -> None:
    assert "X-API-Key" in await keys.refused(request(("Authorization", text)))
    assert keys.authorizers.challenge(["api_key"]) == 'Bearer realm="headworks"'


async def test_the_first_credential_that_is_good_counts(tmp_path: Path) -> None:
    (tmp_path / "jwks.json").write_bytes(jwks("ES256"))
    rig = Rig(tmp_path, jwt=of_tokens(tmp_path), api_key=Authorizer(kind="api_key"))
    _, secret = rig.registry.issue_key("u", "backend", Kind.CALLER, 1.0, None)
    both = request(("Authorization", f"Bearer {token()}"), ("X-API-Key", secret))
    assert (await rig.who(both, "jwt", "api_key")).tenant == "t"
    assert (await rig.who(both, "api_key", "jwt")).tenant == "u"
    stale = request(("Authorization", f"Bearer {token(exp=1)}"), ("X-API-Key", secret))
    assert (await rig.who(stale, "jwt", "api_key")).tenant == "u"
    assert "Expired" in await rig.refused(request(("Authorization", f"Bearer {token(exp=1)}")))
    assert "bearer token, or an API key" in await rig.refused(request())


async def test_a_suspended_tenant_is_refused_within_a_second(tmp_path: Path, tokens: Rig) -> None:
    other = Registry(tmp_path / "registry.db")
    other.add_tenant("t", "default", 1.0)
    async with tokens.running():
        await tokens.who(bearer(token()))
        other.set_tenant_status("t", Status.SUSPENDED, 2.0)
        changed_s = asyncio.get_running_loop().time()
        while not await is_suspended(tokens):
            await asyncio.sleep(0.01)
        assert asyncio.get_running_loop().time() - changed_s < 1.0
        await tokens.who(bearer(token(tenant="u")))
        other.set_tenant_status("t", Status.ACTIVE, 3.0)
        async with asyncio.timeout(HEARD_WITHIN_S):
            while await is_suspended(tokens):
                await asyncio.sleep(0.01)


async def is_suspended(rig: Rig) -> bool:
    try:
        await rig.who(bearer(token()))
    except Suspended:
        return True
    return False


async def test_a_suspended_device_is_refused_whatever_it_shows(keys: Rig) -> None:
    _, secret = keys.registry.issue_key("t", "d", Kind.DEVICE, 1.0, None)
    keys.registry.set_device_status("t", "d", Status.SUSPENDED, 1.0)
    with pytest.raises(Suspended):
        await keys.who(bearer(secret))


ANSWER = {"tenant": "t", "name": "jo", "scopes": ["a:b", "strange"], "plan": "gold", "more": 1}


@pytest.fixture
async def custom(tmp_path: Path, server: Server) -> AsyncIterator[Rig]:
    server.answer = says(msgspec.json.encode(ANSWER))
    rig = Rig(tmp_path, custom=of_custom(server))
    async with rig.running():
        yield rig


def of_custom(server: Server, **fields: Any) -> Authorizer:
    return Authorizer(kind="custom", url=server.url, header="X-Ticket", **fields)


def ticket(text: str) -> web.Request:
    return request(("X-Ticket", text), path="/v1/a%2Fb?q=1", method="POST")


async def test_a_service_is_asked_once_and_remembered(custom: Rig, server: Server) -> None:
    for _ in range(3):
        assert await custom.who(ticket("s3cret")) == Principal(
            tenant="t", name="jo", scopes=frozenset({"a:b"}), credential=Credential.CUSTOM, plan="gold"
        )
    [asked] = server.asked
    assert json.loads(asked) == {"credential": "s3cret", "method": "POST", "path": "/v1/a%2Fb", "source": ""}
    custom.now_s += 60.0
    await custom.who(ticket("s3cret"))
    assert len(server.asked) == 2
    await custom.who(ticket("another"))
    assert len(server.asked) == 3
    kept = repr(vars(custom.authorizers._ways["custom"]))
    assert "s3cret" not in kept


@pytest.mark.parametrize("status", [401, 403])
async def test_a_no_is_remembered_too(custom: Rig, server: Server, status: int) -> None:
    server.answer = says(b"s3cret", status)
    for _ in range(3):
        assert "s3cret" not in await custom.refused(ticket("s3cret"))
    assert len(server.asked) == 1


async def test_an_answer_ends_when_it_says_so(custom: Rig, server: Server) -> None:
    server.answer = says(msgspec.json.encode({**ANSWER, "expires_s": NOW_S + 5}))
    assert (await custom.who(ticket("s3cret"))).expires_s == NOW_S + 5
    custom.now_s += 5
    assert "expired" in await custom.refused(ticket("s3cret"))
    assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 500),
        (b"", 429),
        (b"", 302),
        (b"", 204),
        (b"not json", 200),
        (b"[]", 200),
        (b"\xff", 200),
        (b"{}", 200),
        (msgspec.json.encode({**ANSWER, "tenant": "*"}), 200),
        (msgspec.json.encode({**ANSWER, "tenant": "a/b"}), 200),
        (msgspec.json.encode({**ANSWER, "name": ""}), 200),
        (msgspec.json.encode({**ANSWER, "scopes": "a:b"}), 200),
        (msgspec.json.encode({**ANSWER, "scopes": [f"a{number}:b" for number in range(65)]}), 200),
        (msgspec.json.encode({**ANSWER, "more": "x" * 20_000}), 200),
    ],
)
async def test_a_service_that_makes_no_sense_is_away_and_asked_again(
    custom: Rig, server: Server, body: bytes, status: int
) -> None:
    server.answer = says(body, status)
    with pytest.raises(AuthorizerDown) as down:
        await custom.who(ticket("s3cret"))
    assert "s3cret" not in str(down.value)
    server.answer = says(msgspec.json.encode(ANSWER))
    await custom.who(ticket("s3cret"))


async def test_a_service_that_hangs_or_is_gone_is_away(tmp_path: Path, server: Server) -> None:
    async def hang(asked: web.Request) -> web.Response:
        del asked
        await server.over.wait()
        return web.Response()

    server.answer = hang
    gone = Authorizer(kind="custom", url="http://127.0.0.1:1/", header="X-Ticket")
    rig = Rig(tmp_path, slow=of_custom(server, timeout_s=0.1), gone=gone, key=Authorizer(kind="api_key"))
    async with rig.running():
        with pytest.raises(AuthorizerDown, match="in time"):
            await rig.who(ticket("s3cret"), "slow")
        with pytest.raises(AuthorizerDown, match="cannot be asked"):
            await rig.who(ticket("s3cret"), "gone")
        _, secret = rig.registry.issue_key("u", "jo", Kind.CALLER, 1.0, None)
        both = request(("X-Ticket", "s3cret"), ("X-API-Key", secret))
        assert (await rig.who(both)).tenant == "u", "another credential is good"
        with pytest.raises(AuthorizerDown):
            await rig.who(request(("X-Ticket", "s3cret"), ("X-API-Key", "wrong")))


async def test_of_many_with_one_credential_one_asks(custom: Rig, server: Server) -> None:
    let_go = asyncio.Event()

    async def later(asked: web.Request) -> web.Response:
        del asked
        await let_go.wait()
        return web.Response(body=msgspec.json.encode(ANSWER))

    server.answer = later
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(custom.who(ticket("s3cret")))
        others = [tasks.create_task(custom.who(ticket("s3cret"))) for _ in range(20)]
        while not server.asked:
            await asyncio.sleep(0.01)
        first.cancel()  # its client has gone; another one asks
        while len(server.asked) < 2:
            await asyncio.sleep(0.01)
        let_go.set()
    assert {(await other).name for other in others} == {"jo"}
    assert len(server.asked) == 2


async def test_how_much_is_remembered_is_limited(tmp_path: Path, server: Server) -> None:
    server.answer = says(msgspec.json.encode(ANSWER))
    rig = Rig(tmp_path, custom=of_custom(server, cache_entries_max=3), never=of_custom(server, cache_s=0.0))
    async with rig.running():
        for number in range(6):
            await rig.who(ticket(str(number)), "custom")
        await rig.who(ticket("5"), "custom")
        assert len(server.asked) == 6
        await rig.who(ticket("0"), "custom")
        assert len(server.asked) == 7
        for _ in range(2):
            await rig.who(ticket("0"), "never")
        assert len(server.asked) == 9


class Tls:
    """A server that asks for client certificates, and says whom it sees."""

    def __init__(self, rig: Rig) -> None:
        self.ca = trustme.CA()
        self.rig = rig
        self.url = ""

    async def handle(self, asked: web.Request) -> web.Response:
        try:
            who = await self.rig.who(asked)
        except (Unauthenticated, Suspended) as error:
            return web.Response(status=401, text=f"{type(error).__name__}: {error}")
        return web.json_response([who.tenant, who.name, who.device, sorted(who.scopes), who.fingerprint])

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert("localhost").configure_cert(context)
        self.ca.configure_trust(context)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    async def get(self, *uris: str, subject: tuple[str, str] | None = None) -> tuple[int, Any]:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
        self.ca.configure_trust(context)
        if uris or subject:
            tenant, device = subject or (None, None)
            certificate = self.ca.issue_cert(
                *(uris or ("localhost",)), organization_name=tenant, common_name=device
            )
            certificate.configure_cert(context)
        async with (
            aiohttp.ClientSession() as client,
            client.get(self.url, ssl=context, server_hostname="localhost") as answer,
        ):
            text = await answer.text()
            return answer.status, json.loads(text) if answer.status == 200 else text


@pytest.fixture
async def tls(tmp_path: Path) -> AsyncIterator[Tls]:
    rig = Rig(tmp_path, certificate=Authorizer(kind="certificate", scopes=["shadow:read"]))
    made = Tls(rig)
    app = web.Application()
    app.router.add_get("/", made.handle)
    server = TestServer(app, host="127.0.0.1", scheme="https")
    await server.start_server(ssl=made.server_context())
    made.url = str(server.make_url("/"))
    yield made
    await server.close()


async def test_a_certificate_names_a_device(tls: Tls) -> None:
    status, who = await tls.get(subject=("t", "d"))
    assert (status, who[:4]) == (200, ["t", "d", "d", ["shadow:read"]])
    assert tls.rig.authorizers.challenge(["certificate"]).startswith("Mutual")
    status, said = await tls.get()
    assert status == 401
    assert "client certificate" in said
    status, said = await tls.get(subject=("no tenant!", "d"))
    assert status == 401
    assert "names no tenant" in said


async def test_a_certificate_that_is_revoked_or_over_is_refused(tls: Tls) -> None:
    tls.rig.revoked = Everything()
    tls.rig.authorizers._is_revoked = tls.rig.revoked.__contains__
    tls.rig.authorizers.replace({"certificate": Authorizer(kind="certificate")})
    assert "revoked" in (await tls.get(subject=("t", "d")))[1]
    tls.rig.authorizers._is_revoked = set[str]().__contains__
    tls.rig.authorizers.replace({"certificate": Authorizer(kind="certificate", scopes=["a:b"])})
    tls.rig.now_s = 33_000_000_000.0
    assert "expired" in (await tls.get(subject=("t", "d")))[1]


class Everything(set[str]):
    """A list of revocations with everybody on it."""

    def __contains__(self, _: object) -> bool:
        return True


async def test_a_certificate_of_a_suspended_device_is_refused(tls: Tls) -> None:
    tls.rig.registry.set_device_status("t", "d", Status.SUSPENDED, 1.0)
    assert (await tls.get(subject=("t", "d")))[1].startswith("Suspended")
    assert (await tls.get(subject=("t", "e")))[0] == 200


async def test_a_claim_certificate_has_one_scope_whatever_others_have() -> None:
    names = CertificateNames("example.org", claims=True)
    way = _Certificates(
        Authorizer(kind="certificate", scopes=["shadow:write"]), names, set[str]().__contains__, lambda: 0.0
    )
    shown = {"subjectAltName": (("URI", "spiffe://example.org/tenant/t/claim/c"),), "serialNumber": "1"}
    who = await way.principal(shown, make_mocked_request("POST", "/v1/provision"))
    assert (who.tenant, who.name, who.device, who.scopes) == ("t", "c", "", frozenset({"claims:provision"}))
