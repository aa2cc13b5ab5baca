"""Where keys come from: a server that fails, hangs or rotates, and files that are wrong. Good keys stay."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from ingest.settings import Jwt
from routing.tenancy.identity import Unauthenticated
from routing.tenancy.jwt import JWKS_BYTES_MAX, JwksError, JwtVerifier, keys_of

FIRST, SECOND = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
CLAIMS: dict[str, Any] = {"tenant": "t", "device": "d", "exp": 4_000_000_000}
HEARD_WITHIN_S = 20.0


def jwk(key: ec.EllipticCurvePrivateKey, kid: str | None, **members: Any) -> dict[str, Any]:
    named = {} if kid is None else {"kid": kid}
    return {**json.loads(ECAlgorithm.to_jwk(key.public_key())), **named, **members}


def jwks(*keys: Any) -> bytes:
    return msgspec.json.encode({"keys": keys})


def token(key: ec.EllipticCurvePrivateKey, kid: str, **claims: Any) -> str:
    return jwt.encode({**CLAIMS, **claims}, key, algorithm="ES256", headers={"kid": kid})


GOOD = jwks(jwk(FIRST, "first"))
ROTATED = jwks(jwk(FIRST, "first"), jwk(SECOND, "second"))
Answer = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Issuer:
    """A server of keys. It answers as it is told, and notes when it was asked."""

    def __init__(self) -> None:
        self.answer: Answer = says(GOOD)
        self.asked_s: list[float] = []
        self.over = asyncio.Event()
        self.url = ""

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.asked_s.append(asyncio.get_running_loop().time())
        return await self.answer(request)


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer()
    app = web.Application()
    app.router.add_get("/keys", issuer.handle)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server()
    issuer.url = str(server.make_url("/keys"))
    yield issuer
    issuer.over.set()
    await server.close()


def says(body: bytes, status: int = 200) -> Answer:
    async def answer(request: web.BaseRequest) -> web.StreamResponse:
        del request
        return web.Response(body=body, status=status)

    return answer


def verifier_of(url: str, refresh_s: float = 3600.0) -> JwtVerifier:
    return JwtVerifier(Jwt(jwks_url=url, refresh_s=refresh_s), refused=Unauthenticated)


class Heard:
    """What `run` reported, one at a time."""

    def __init__(self) -> None:
        self._reports: asyncio.Queue[str | None] = asyncio.Queue()
        self.put = self._reports.put_nowait

    async def next(self) -> str | None:
        async with asyncio.timeout(HEARD_WITHIN_S):
            return await self._reports.get()

    async def until(self, report: str | None) -> None:
        while await self.next() != report:
            pass


@contextlib.asynccontextmanager
async def running(
    verifier: JwtVerifier, *, refetch_s: float = 0.0, deadline_s: float = HEARD_WITHIN_S
) -> AsyncIterator[Heard]:
    heard = Heard()
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(verifier.run(refetch_s=refetch_s, deadline_s=deadline_s, fetched=heard.put))
        yield heard
        assert not task.done(), "it goes on whatever the server does"
        task.cancel()


def refuses(verifier: JwtVerifier, token: str, match: str | None = None) -> None:
    with pytest.raises(Unauthenticated, match=match):
        verifier.identity(token)


async def test_before_the_first_answer_everybody_is_refused(issuer: Issuer) -> None:
    verifier = verifier_of(issuer.url)
    refuses(verifier, token(FIRST, "first"))
    async with running(verifier) as heard:
        assert await heard.next() is None
        assert verifier.identity(token(FIRST, "first")).name == "d"


@pytest.mark.parametrize(
    ("answer", "report"),
    [
        (says(GOOD, 500), "the answer is 500 Internal Server Error"),
        (says(GOOD, 404), "the answer is 404 Not Found"),
        (says(b"<html>down for maintenance</html>"), "not a JWKS"),
        (says(b""), "not a JWKS"),
        (says(b"\xff\xfe"), "not a JWKS"),
        (says(b'{"keys": ["\xff"], "\xff": 1}'), "without a key"),
        (says(b"[" * 500_000), "not a JWKS"),
        (says(b"[]"), "not a JWKS"),
        (says(b"null"), "not a JWKS"),
        (says(b"{}"), "not a JWKS"),
        (says(b'{"keys": {"first": 1}}'), "not a JWKS"),
        (says(GOOD[:-9]), "not a JWKS"),
        (says(jwks()), "without a key"),
        (says(jwks({"kty": "oct", "k": "AAAA"})), "without a key"),
    ],
)
async def test_a_bad_answer_is_reported_and_the_last_good_keys_stay(
    issuer: Issuer, answer: Answer, report: str
) -> None:
    verifier = verifier_of(issuer.url, refresh_s=0.01)
    async with running(verifier) as heard:
        assert await heard.next() is None
        issuer.answer = answer
        while (said := await heard.next()) is None:
            pass
        assert report in said
        assert verifier.identity(token(FIRST, "first")).tenant == "t"
        issuer.answer = says(ROTATED)
        await heard.until(None)
        assert verifier.identity(token(SECOND, "second")).tenant == "t"


async def test_a_server_that_hangs_meets_the_deadline(issuer: Issuer) -> None:
    async def hang(request: web.BaseRequest) -> web.StreamResponse:
        await issuer.over.wait()
        return await says(GOOD)(request)

    issuer.answer = hang
    async with running(verifier_of(issuer.url), deadline_s=0.1) as heard:
        assert await heard.next() == "no answer within 0.1 s"


async def test_a_server_that_never_finishes_its_answer_meets_the_deadline_too(issuer: Issuer) -> None:
    async def drip(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while not issuer.over.is_set():
            await response.write(b" ")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(issuer.over.wait(), 0.02)
        return response

    issuer.answer = drip
    async with running(verifier_of(issuer.url), deadline_s=0.2) as heard:
        assert await heard.next() == "no answer within 0.2 s"


async def test_an_answer_without_end_is_read_up_to_the_limit_only(issuer: Issuer) -> None:
    sent: list[int] = []

    async def flood(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while not issuer.over.is_set():
            await response.write(b" " * 65_536)
            sent.append(65_536)
        return response

    issuer.answer = flood
    async with running(verifier_of(issuer.url), refetch_s=3600.0) as heard:
        assert await heard.next() == f"more than {JWKS_BYTES_MAX} bytes"
    assert sum(sent) < 32 * JWKS_BYTES_MAX, "what is beyond lies in the buffers of two sockets"


async def test_keys_that_come_in_pieces_are_put_together(issuer: Issuer) -> None:
    async def in_pieces(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for start in range(0, len(GOOD), 40):
            await response.write(GOOD[start : start + 40])
            for _ in range(50):  # turns of the loop in which the client reads
                await asyncio.sleep(0)
        return response

    issuer.answer = in_pieces
    verifier = verifier_of(issuer.url)
    async with running(verifier) as heard:
        assert await heard.next() is None
        verifier.identity(token(FIRST, "first"))


async def test_an_unknown_key_makes_the_set_be_read_again(issuer: Issuer) -> None:
    verifier = verifier_of(issuer.url)
    async with running(verifier) as heard:
        assert await heard.next() is None
        verifier.identity(token(FIRST, "first"))
        assert len(issuer.asked_s) == 1, "a known key asks for nothing"
        issuer.answer = says(ROTATED)
        refuses(verifier, token(SECOND, "second"), "not known")
        assert await heard.next() is None
        assert verifier.identity(token(SECOND, "second")).name == "d"
        assert len(issuer.asked_s) == 2


async def test_a_key_that_is_gone_from_the_set_is_good_for_nothing(issuer: Issuer) -> None:
    verifier = verifier_of(issuer.url)
    async with running(verifier) as heard:
        assert await heard.next() is None
        issuer.answer = says(jwks(jwk(SECOND, "second")))
        refuses(verifier, token(SECOND, "second"))
        assert await heard.next() is None
        refuses(verifier, token(FIRST, "first"), "not known")


async def test_a_flood_of_unknown_keys_does_not_become_a_flood_at_the_issuer(issuer: Issuer) -> None:
    refetch_s = 0.1
    verifier = verifier_of(issuer.url)
    unknown = token(SECOND, "second")
    async with running(verifier, refetch_s=refetch_s):
        while len(issuer.asked_s) < 4:
            refuses(verifier, unknown)
            await asyncio.sleep(0)
    gaps = [after - before for before, after in itertools.pairwise(issuer.asked_s)]
    assert min(gaps) >= refetch_s - 0.005  # the loop's timers may be early by their resolution


async def test_after_a_failure_it_is_tried_again_without_being_asked(issuer: Issuer) -> None:
    issuer.answer = says(b"", 503)
    verifier = verifier_of(issuer.url)
    async with running(verifier) as heard:
        assert await heard.next() == "the answer is 503 Service Unavailable"
        issuer.answer = says(GOOD)
        await heard.until(None)
        verifier.identity(token(FIRST, "first"))


async def test_keys_are_fresh_though_nobody_asks(issuer: Issuer) -> None:
    async with running(verifier_of(issuer.url, refresh_s=0.01)) as heard:
        assert [await heard.next() for _ in range(4)] == [None] * 4


@pytest.mark.parametrize(
    "url",
    [
        "http://me:s3cret@127.0.0.1:{port}/keys?key=s3cret",
        "http://a..b/s3cret",
        "s3cret",
        "ftp://127.0.0.1/s3cret",
        "http://127.0.0.1:99999/s3cret",
        "http://[s3cret",
    ],
)
async def test_an_address_that_leads_nowhere_is_reported_without_repeating_it(url: str) -> None:
    async with running(verifier_of(url.format(port=unused_port()))) as heard:
        said = await heard.next()
    assert said is not None
    assert said.startswith("cannot be fetched")
    assert "s3cret" not in said


@pytest.mark.parametrize(
    "odd",
    [
        "x",
        None,
        7,
        [],
        {},
        {"kty": "EC"},
        {"kty": ["EC"]},
        {"kty": "RSA", "alg": ["RS256"]},
        {"kty": "RSA", "n": 5, "e": 6},
        {"kty": "RSA", "n": "AQ", "e": "AQ"},
        {"kty": "RSA", "n": "", "e": ""},
        {"kty": "OKP", "crv": "Ed25519", "x": "é"},
        {"kty": "OKP", "crv": "X25519", "x": "A" * 43},
        {"kty": "oct", "k": "A" * 43},
        {**jwk(FIRST, None), "kid": ["first"]},
        jwk(FIRST, "second", use="enc"),
        jwk(FIRST, "second", alg="HS256"),
        jwk(FIRST, "second", alg="ES512"),
        jwk(FIRST, "second", x="AAAA"),
        jwk(ec.generate_private_key(ec.SECP384R1()), "second"),
    ],
)
def test_a_key_that_is_of_no_use_is_passed_over(odd: Any) -> None:
    assert list(keys_of(jwks(odd, jwk(FIRST, "first"), odd))) == ["first"]
    with pytest.raises(JwksError, match="RS256, ES256, EdDSA"):
        keys_of(jwks(odd))


def test_members_that_nobody_knows_do_no_harm() -> None:
    key = jwk(FIRST, "first", use="sig", alg="ES256", x5c=["MIIB"], key_ops=["verify"], extra={"a": [1]})
    assert list(keys_of(msgspec.json.encode({"keys": [key], "more": 1}))) == ["first"]


def test_of_a_private_key_only_the_public_half_is_kept() -> None:
    private = json.loads(ECAlgorithm.to_jwk(FIRST))
    assert "d" in private
    kept = keys_of(jwks(private))[None].key
    assert isinstance(kept, ec.EllipticCurvePublicKey)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{}", jwks(), b" " * (JWKS_BYTES_MAX + 1)])
async def test_a_file_that_is_wrong_is_known_at_the_start(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "jwks.json"
    path.write_bytes(content)
    with pytest.raises(JwksError):
        JwtVerifier(Jwt(jwks_file=str(path)), refused=Unauthenticated)


async def test_a_file_is_read_again_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    with pytest.raises(JwksError, match="No such file"):
        JwtVerifier(Jwt(jwks_file=str(path)), refused=Unauthenticated)
    path.write_bytes(GOOD)
    verifier = JwtVerifier(Jwt(jwks_file=str(path), refresh_s=0.01), refused=Unauthenticated)
    verifier.identity(token(FIRST, "first"))
    async with running(verifier) as heard:
        path.unlink()
        await heard.until("cannot be read: No such file or directory")
        verifier.identity(token(FIRST, "first"))
        path.write_bytes(ROTATED)
        await heard.until(None)
        verifier.identity(token(SECOND, "second"))


@pytest.fixture
async def verifier(tmp_path: Path) -> JwtVerifier:
    path = tmp_path / "jwks.json"
    path.write_bytes(GOOD)
    return JwtVerifier(Jwt(jwks_file=str(path)), refused=Unauthenticated)


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 10**400},
        {"exp": float("inf")},
        {"exp": [1]},
        {"tenant": ""},
        {"tenant": "\ud800"},
        {"tenant": "a/b"},
        {"tenant": "a\0b"},
        {"device": "x" * 129},
        {"device": "a b"},
        {"device": ["d"]},
        {"device": None},
        {"device": None, "gateway": "#"},
    ],
)
async def test_a_token_that_names_what_no_topic_can_is_refused(
    verifier: JwtVerifier, claims: dict[str, Any]
) -> None:
    refuses(verifier, token(FIRST, "first", **claims))


@pytest.mark.parametrize(
    "text", ["é.é.é", "\udcff.a.b", "a" * 20_000, ".".join(["W1tb" * 4000] * 3), "..", "."]
)
async def test_text_that_is_no_token_is_refused(verifier: JwtVerifier, text: str) -> None:
    refuses(verifier, text)
