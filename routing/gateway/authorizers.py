"""Who makes a request: the authorizers of its route that it has a credential for are tried in order.

- A credential that is wrong is not the end while the request has another; one that cannot be checked is not
  taken for wrong: if none is accepted, and one could not be checked, the answer is 503 and not 401.
- A suspended tenant or device is refused whatever it shows, within `REGISTRY_POLL_S` of the change.
- Nothing is checked twice: neither this module nor its errors keep or repeat a credential.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol, assert_never

from aiohttp import web

from routing.gateway import routes_file
from routing.gateway.custom import CustomAuthorizer
from routing.gateway.refusal import AuthorizerDown, Suspended
from routing.gateway.signed import SignedRequests
from routing.tenancy.certificate import CertificateNames
from routing.tenancy.identity import Credential, Kind, Unauthenticated
from routing.tenancy.jwt import Claims, TokenVerifier
from routing.tenancy.principal import EVERY_TENANT, SCOPE, SCOPES_MAX, Principal
from routing.tenancy.registry import Registry, RegistryError, Verdict

__all__ = ["AuthorizerDown", "Authorizers", "Suspended", "Unauthenticated"]

CLAIM_SCOPES: Final = frozenset({"claims:provision"})
"""All that a claim certificate is good for, whatever scopes the authorizer gives to others."""
REGISTRY_POLL_S: Final = 0.5
FLUSH_USE_POLLS: Final = 10
"""When keys were last used is written with every tenth poll."""
REFETCH_S: Final = 1.0
"""Keys of a JWKS are never read more often, however many tokens have keys that nobody knows."""
SIGNED_BODY_BYTES_MAX: Final = 1 << 20
"""A signature covers the body, which so has to be read before it is known whose it is."""
CREDENTIAL_CHARACTERS_MAX: Final = 8192
GOOD_KEYS_MAX: Final = 10_000
"""API keys that are remembered; then all are forgotten, and looked up again."""
API_KEY_HEADER: Final = "X-API-Key"
KEY_PREFIX: Final = "hw_"

KeysFetched = Callable[[str, str | None], None]
"""Hears the name of an authorizer, and None or what was wrong with its keys."""
Credentials = str | dict[str, Any]


class _Way(Protocol):
    """One configured authorizer."""

    asks_for: str

    def shown(self, request: web.BaseRequest) -> Credentials | None:
        """Return the credential of a request that is for this authorizer, or None."""

    async def principal(self, shown: Any, request: web.BaseRequest) -> Principal:
        """Return whom it names; raises `Unauthenticated` or `AuthorizerDown`."""

    async def run(self) -> None:
        """Do what goes on beside requests, until cancelled or done."""

    async def close(self) -> None:
        """Let go of connections."""


class Authorizers:
    """The authorizers of the routes file. `is_revoked` takes the fingerprint of a certificate.

    `run` must be running for keys to be fetched. Files of keys are read at once: raises `JwksError`.
    """

    def __init__(
        self,
        authorizers: Mapping[str, routes_file.Authorizer],
        *,
        registry: Registry,
        names: CertificateNames,
        is_revoked: Callable[[str], bool],
        now_s: Callable[[], float],
        keys_fetched: KeysFetched,
        refetch_s: float = REFETCH_S,
    ) -> None:
        self._registry = registry
        self._names = names
        self._is_revoked = is_revoked
        self._now_s = now_s
        self._keys_fetched = keys_fetched
        self._refetch_s = refetch_s
        self._settings: dict[str, routes_file.Authorizer] = {}
        self._ways: dict[str, _Way] = {}
        self._gone: list[_Way] = []
        self._replaced = asyncio.Event()
        self.replace(authorizers)

    def replace(self, authorizers: Mapping[str, routes_file.Authorizer]) -> None:
        """Take new authorizers; those that did not change keep their keys and what they remember.

        Raises `JwksError` when a file of keys is of no use, and then nothing has changed.
        """
        ways = {
            name: self._ways[name] if self._settings.get(name) == entry else self._make(name, entry)
            for name, entry in authorizers.items()
        }
        self._gone += [way for name, way in self._ways.items() if ways.get(name) is not way]
        self._settings, self._ways = dict(authorizers), ways
        self._replaced.set()

    def _make(self, name: str, settings: routes_file.Authorizer) -> _Way:
        match settings.kind:
            case "jwt":
                return _Tokens(name, settings, self._keys_fetched, self._refetch_s)
            case "api_key":
                return _Keys(settings, self._registry, self._now_s)
            case "certificate":
                return _Certificates(settings, self._names, self._is_revoked, self._now_s)
            case "custom":
                return CustomAuthorizer(settings, now_s=self._now_s)
            case "sigv4":
                return SignedRequests(
                    Path(settings.signing_keys_file),
                    body_bytes_max=SIGNED_BODY_BYTES_MAX,
                    unix_s=self._now_s,
                    reloaded=lambda error: self._keys_fetched(name, error),
                )
            case _:
                assert_never(settings.kind)

    async def identify(self, names: Iterable[str], request: web.BaseRequest) -> Principal:
        """Return who makes a request.

        Raises `Unauthenticated` (401), `Suspended` (403) or `AuthorizerDown` (503); their texts repeat no
        credential.
        """
        ways = [self._ways[name] for name in names if name in self._ways]
        refused: Unauthenticated | None = None
        down: AuthorizerDown | None = None
        for way in ways:
            try:
                shown = way.shown(request)
                if shown is None:
                    continue
                principal = await way.principal(shown, request)
            except Unauthenticated as error:
                refused = refused or error
            except AuthorizerDown as error:
                down = down or error
            else:
                return self._in_good_standing(principal)
        if down is not None:
            raise down
        if refused is not None:
            raise refused
        wanted = ", or ".join(dict.fromkeys(way.asks_for for way in ways))
        raise Unauthenticated(f"this route asks for {wanted}" if wanted else "nobody may use this route")

    def challenge(self, names: Iterable[str]) -> str:
        """Return the `WWW-Authenticate` of a 401 (RFC 9110, 11.6.1)."""
        kinds = {self._settings[name].kind for name in names if name in self._settings}
        bearer = 'Bearer realm="headworks"'
        return 'Mutual realm="headworks"' if kinds == {"certificate"} else bearer

    def _in_good_standing(self, principal: Principal) -> Principal:
        if principal.tenant == EVERY_TENANT:
            return principal
        try:
            verdict = self._registry.judge(principal.tenant, principal.device, registered_only=False)
        except RegistryError as error:
            raise AuthorizerDown("the registry cannot be read") from error
        if verdict is not Verdict.ADMITTED:
            raise Suspended("this tenant or device is suspended")
        return principal

    async def run(self) -> None:
        """Keep keys fresh, and notice what other processes write into the registry, until cancelled."""
        running: dict[_Way, asyncio.Task[None]] = {}
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._watch_registry())
                while True:
                    self._replaced.clear()
                    for way in set(running) - set(self._ways.values()):
                        running.pop(way).cancel()
                    for way in self._ways.values():
                        if way not in running:
                            running[way] = tasks.create_task(way.run())
                    gone, self._gone = self._gone, []
                    for way in gone:
                        await way.close()
                    await self._replaced.wait()
        finally:
            for way in [*self._ways.values(), *self._gone]:
                await way.close()

    async def _watch_registry(self) -> None:
        polls = 0
        while True:
            await asyncio.sleep(REGISTRY_POLL_S)
            polls += 1
            try:
                self._registry.changed()
                if polls % FLUSH_USE_POLLS == 0:
                    self._registry.flush_use()
            except RegistryError:
                self._registry.forget()  # callers hear 503 from `identify`, which looks for itself


class _Tokens:
    """JSON Web Tokens as bearer tokens."""

    asks_for = "a bearer token"

    def __init__(
        self, name: str, settings: routes_file.Authorizer, fetched: KeysFetched, refetch_s: float
    ) -> None:
        self._name = name
        self._settings = settings
        self._fetched = fetched
        self._refetch_s = refetch_s
        self._verifier = TokenVerifier(settings, refused=Unauthenticated)

    def shown(self, request: web.BaseRequest) -> str | None:
        token = bearer_token(request)
        return None if token is None or token.startswith(KEY_PREFIX) else token

    async def principal(self, shown: str, request: web.BaseRequest) -> Principal:
        del request
        if not self._verifier.ready:
            raise AuthorizerDown("no keys to check tokens with have been fetched yet")
        return principal_of_claims(self._verifier.claims(shown), self._settings)

    async def run(self) -> None:
        await self._verifier.run(
            refetch_s=self._refetch_s,
            deadline_s=self._settings.timeout_s,
            fetched=lambda wrong: self._fetched(self._name, wrong),
        )

    async def close(self) -> None:
        pass


class _Keys:
    """API keys of the registry; those that were good are remembered until something is written there.

    What is remembered is found by a hash of the key: who measures how long that takes learns nothing of it.
    """

    asks_for = f"an API key in {API_KEY_HEADER}"

    def __init__(
        self, settings: routes_file.Authorizer, registry: Registry, now_s: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._now_s = now_s
        self._good: dict[bytes, Principal] = {}
        self._revision = -1

    def shown(self, request: web.BaseRequest) -> str | None:
        key = only_header(request, API_KEY_HEADER)
        if key is not None:
            return key
        token = bearer_token(request)
        return token if token is not None and token.startswith(KEY_PREFIX) else None

    async def principal(self, shown: str, request: web.BaseRequest) -> Principal:
        """Return whom a key names.

        Hot: guarded by bench/test_callers.py::test_identify_by_key.
        """
        del request
        now_s = self._now_s()
        if self._revision != self._registry.revision or len(self._good) >= GOOD_KEYS_MAX:
            self._good.clear()
            self._revision = self._registry.revision
        name = hashlib.sha256(shown.encode("utf-8", "surrogatepass")).digest()
        principal = self._good.get(name)
        if principal is not None and (principal.expires_s is None or now_s < principal.expires_s):
            self._registry.note_use(principal.fingerprint, now_s)
            return principal
        principal = self._good[name] = self._found(shown, now_s)
        return principal

    def _found(self, shown: str, now_s: float) -> Principal:
        try:
            key = self._registry.key_of(shown, now_s)
        except RegistryError as error:
            raise AuthorizerDown("the registry cannot be read") from error
        if key is None or (key.tenant == EVERY_TENANT and not self._settings.operators):
            raise Unauthenticated("the API key is not valid here")
        return Principal(
            tenant=key.tenant,
            name=key.name,
            scopes=frozenset(key.scopes),
            credential=Credential.API_KEY,
            fingerprint=key.id,
            plan=key.plan,
            device=key.name if key.kind == Kind.DEVICE.value else "",
            expires_s=key.expires_s,
        )

    async def run(self) -> None:
        pass

    async def close(self) -> None:
        pass


class _Certificates:
    """The client certificate of the TLS connection, as the handshake has checked it."""

    asks_for = "a client certificate"

    def __init__(
        self,
        settings: routes_file.Authorizer,
        names: CertificateNames,
        is_revoked: Callable[[str], bool],
        now_s: Callable[[], float],
    ) -> None:
        self._scopes = frozenset(settings.scopes)
        self._names = names
        self._is_revoked = is_revoked
        self._now_s = now_s

    def shown(self, request: web.BaseRequest) -> dict[str, Any] | None:
        tls = request.get_extra_info("ssl_object")
        certificate = tls.getpeercert() if isinstance(tls, ssl.SSLObject | ssl.SSLSocket) else None
        return certificate or request.get_extra_info("peercert") or None

    async def principal(self, shown: dict[str, Any], request: web.BaseRequest) -> Principal:
        """Return whom a certificate names; it may have expired or been revoked since the handshake."""
        del request
        identity = self._names.identity(shown)
        if self._is_revoked(identity.fingerprint):
            raise Unauthenticated("the certificate is revoked")
        if identity.expires_s is not None and identity.expires_s <= self._now_s():
            raise Unauthenticated("the certificate has expired")
        return Principal(
            tenant=identity.tenant,
            name=identity.name,
            scopes=CLAIM_SCOPES if identity.kind is Kind.CLAIM else self._scopes,
            credential=Credential.CERTIFICATE,
            fingerprint=identity.fingerprint,
            device=identity.name if identity.kind is Kind.DEVICE else "",
            expires_s=identity.expires_s,
        )

    async def run(self) -> None:
        pass

    async def close(self) -> None:
        pass


def principal_of_claims(claims: Claims, settings: routes_file.Authorizer) -> Principal:
    """Read a token as a caller of the API; raises `Unauthenticated`."""
    tenant = claims.name(settings.tenant_claim)
    if claims.values.get(settings.tenant_claim) == EVERY_TENANT and settings.operators:
        tenant = EVERY_TENANT
    name = claims.values.get(settings.name_claim)
    plan = claims.values.get(settings.plan_claim, "")
    if tenant is None:
        raise Unauthenticated("the token names no tenant")
    if not (isinstance(name, str) and 0 < len(name) <= 256 and name.isprintable()):
        raise Unauthenticated("the token names nobody")
    if not isinstance(plan, str):
        raise Unauthenticated("the token's plan is not a name")
    return Principal(
        tenant=tenant,
        name=name,
        scopes=_scopes(claims.values.get(settings.scope_claim, "")),
        credential=Credential.JWT,
        fingerprint=claims.token_id,
        plan=plan,
        expires_s=claims.expires_s,
    )


def _scopes(claim: Any) -> frozenset[str]:
    """Return the scopes of a claim, written with spaces (RFC 8693) or as a list; others' are passed over."""
    words = claim.split() if isinstance(claim, str) else claim
    if not (isinstance(words, list) and all(isinstance(word, str) for word in words)):
        raise Unauthenticated("the token's scopes are neither text nor a list of it")
    known = frozenset(word for word in words if SCOPE.fullmatch(word))
    if len(known) > SCOPES_MAX:
        raise Unauthenticated(f"the token has more than {SCOPES_MAX} scopes")
    return known


def bearer_token(request: web.BaseRequest) -> str | None:
    """Return the bearer token of a request, if it has one; raises `Unauthenticated` when it has two."""
    scheme, _, token = (only_header(request, "Authorization") or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" and token.strip() else None


def only_header(request: web.BaseRequest, name: str) -> str | None:
    """Return a header, or None; two of it would mean that somebody else may read the other one."""
    values = request.headers.getall(name, [])
    if len(values) > 1:
        raise Unauthenticated(f"more than one {name}")
    if values and len(values[0]) > CREDENTIAL_CHARACTERS_MAX:
        raise Unauthenticated(f"{name} is too long")
    return values[0] if values else None
