"""An authorizer that asks an HTTP service of the operator's: POST in, who it is out; answers are remembered.

- The service gets `{"credential", "method", "path", "source"}` and answers 200 with
  `{"tenant", "name", "scopes", "plan"?, "expires_s"?}`, or 401 or 403 to refuse. All else counts as away.
- An answer, yes or no, is remembered for `cache_s` under the SHA-256 of the credential, never beyond its own
  `expires_s`, and at most `cache_entries_max` of them, the oldest going first. So a service that
  looks at method or path needs `cache_s = 0`.
- Of many requests with one credential at the same time, one asks and the others wait for its answer.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from typing import Final

import aiohttp
import msgspec
from aiohttp import web

from routing.gateway.refusal import AuthorizerDown
from routing.gateway.routes_file import Authorizer
from routing.tenancy.identity import Credential, Unauthenticated
from routing.tenancy.jwt import NAME
from routing.tenancy.principal import EVERY_TENANT, SCOPE, SCOPES_MAX, Principal

ANSWER_BYTES_MAX: Final = 16_384
CREDENTIAL_CHARACTERS_MAX: Final = 8192
REFUSED: Final = frozenset({401, 403})


class _Answer(msgspec.Struct, frozen=True):
    """What the service says; it may say more, which is passed over."""

    tenant: str
    name: str
    scopes: list[str]
    plan: str = ""
    expires_s: float | None = None


class _Remembered(msgspec.Struct, frozen=True):
    principal: Principal | None
    until_s: float


class CustomAuthorizer:
    """One custom authorizer of the routes file."""

    def __init__(self, settings: Authorizer, *, now_s: Callable[[], float]) -> None:
        self._settings = settings
        self._now_s = now_s
        self._remembered: dict[bytes, _Remembered] = {}
        self._asking: dict[bytes, asyncio.Future[Principal | None]] = {}
        self._client: aiohttp.ClientSession | None = None
        self.asks_for = f"a credential in {settings.header}"

    def shown(self, request: web.BaseRequest) -> str | None:
        """Return the header that the service is to judge."""
        values = request.headers.getall(self._settings.header, [])
        if len(values) > 1:
            raise Unauthenticated(f"more than one {self._settings.header}")
        if values and len(values[0]) > CREDENTIAL_CHARACTERS_MAX:
            raise Unauthenticated(f"{self._settings.header} is too long")
        if values and not values[0].isascii():
            raise Unauthenticated(f"{self._settings.header} is not ASCII")
        return values[0] if values and values[0] else None

    async def principal(self, shown: str, request: web.BaseRequest) -> Principal:
        """Return whom the service names, or named lately."""
        digest = hashlib.sha256(shown.encode()).digest()
        now_s = self._now_s()
        remembered = self._remembered.get(digest)
        if remembered is not None and now_s < remembered.until_s:
            principal = remembered.principal
        else:
            principal = await self._ask_once(digest, shown, request)
        if principal is None:
            raise Unauthenticated("the credential is refused")
        if principal.expires_s is not None and principal.expires_s <= now_s:
            raise Unauthenticated("the credential has expired")
        return principal

    async def _ask_once(self, digest: bytes, shown: str, request: web.BaseRequest) -> Principal | None:
        """Ask, or wait for whoever asks already. When that one is cancelled, the next asks."""
        while (asking := self._asking.get(digest)) is not None:
            await asyncio.wait([asking])
            if not asking.cancelled():
                return asking.result()
        answer: asyncio.Future[Principal | None] = asyncio.get_running_loop().create_future()
        self._asking[digest] = answer
        try:
            principal = await self._ask(shown, request)
        except AuthorizerDown as error:
            answer.set_exception(error)
            answer.exception()  # nobody may be waiting for it
            raise
        else:
            self._remember(digest, principal)
            answer.set_result(principal)
            return principal
        finally:
            del self._asking[digest]
            answer.cancel()

    def _remember(self, digest: bytes, principal: Principal | None) -> None:
        if not self._settings.cache_s:
            return
        self._remembered.pop(digest, None)
        while len(self._remembered) >= self._settings.cache_entries_max:
            del self._remembered[next(iter(self._remembered))]
        until_s = self._now_s() + self._settings.cache_s
        if principal is not None and principal.expires_s is not None:
            until_s = min(until_s, principal.expires_s)
        self._remembered[digest] = _Remembered(principal, until_s)

    async def _ask(self, shown: str, request: web.BaseRequest) -> Principal | None:
        question = {
            "credential": shown,
            "method": request.method,
            "path": request.rel_url.raw_path,
            "source": request.remote or "",
        }
        if self._client is None:
            self._client = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(self._settings.timeout_s))
        try:
            async with self._client.post(
                self._settings.url,
                data=msgspec.json.encode(question),
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
            ) as response:
                if response.status in REFUSED:
                    return None
                if response.status != 200:
                    raise AuthorizerDown(f"the authorizer answers {response.status}")
                content = await _read(response.content)
        except TimeoutError as error:
            raise AuthorizerDown("the authorizer does not answer in time") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise AuthorizerDown(f"the authorizer cannot be asked: {type(error).__name__}") from error
        return self._read_answer(content)

    def _read_answer(self, content: bytes) -> Principal:
        try:
            answer = msgspec.json.decode(content, type=_Answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise AuthorizerDown("the authorizer's answer makes no sense") from error
        is_operator = answer.tenant == EVERY_TENANT and self._settings.operators
        scopes = frozenset(scope for scope in answer.scopes if SCOPE.fullmatch(scope))
        if not (is_operator or NAME.fullmatch(answer.tenant)) or len(scopes) > SCOPES_MAX:
            raise AuthorizerDown("the authorizer's answer names no tenant, or too many scopes")
        if not (0 < len(answer.name) <= 256 and answer.name.isprintable()):
            raise AuthorizerDown("the authorizer's answer names nobody")
        return Principal(
            tenant=answer.tenant,
            name=answer.name,
            scopes=scopes,
            credential=Credential.CUSTOM,
            plan=answer.plan,
            expires_s=answer.expires_s,
        )

    async def run(self) -> None:
        """Nothing goes on beside requests."""

    async def close(self) -> None:
        """Close the connections to the service."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()


async def _read(content: aiohttp.StreamReader) -> bytes:
    read = bytearray()
    async for part in content.iter_any():
        read += part
        if len(read) > ANSWER_BYTES_MAX:
            raise AuthorizerDown(f"the authorizer's answer has more than {ANSWER_BYTES_MAX} bytes")
    return bytes(read)
