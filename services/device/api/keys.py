"""Operations on API keys.

Nobody gives away more than they have: a key gets, and who rotates it holds, scopes that the caller has too.
Only an operator says which usage plan a key is on.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from routing.tenancy.identity import Kind
from routing.tenancy.principal import EVERY_TENANT, SCOPE, SCOPES_MAX
from routing.tenancy.registry import ApiKey, Status
from runtime import clock
from services.device.fleet import status_name
from services.device.resources import Body, Names, StatusName, at, at_or_none
from services.device.service import DeviceService
from services.web.operations import Asked, NoBody, NoQuery, Operations, Reply
from services.web.page import Page, PageQuery, key_of, page_of
from services.web.passport import Caller
from services.web.refusal import Refused, not_found

ALL: Final = "/v1/tenants/{tenant}/keys"
ONE: Final = "/v1/tenants/{tenant}/keys/{key}"
PATTERN: Final = r"[0-9a-f]{12}"
PUBLISH: Final = "telemetry:write"
Scope = Annotated[str, Meta(pattern=f"^{SCOPE.pattern}$")]


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """An API key without its secret. After a rotation the one before is good until `previous_until`."""

    id: str
    name: str
    kind: Literal["caller", "device", "gateway"]
    status: StatusName
    scopes: list[str]
    plan: str
    created_at: dt.datetime
    expires_at: dt.datetime | None
    previous_until: dt.datetime | None
    last_used_at: dt.datetime | None


class NewKey(Body, frozen=True):
    """A key to make. A `caller` calls the API, a `device` or a `gateway` publishes telemetry as that name."""

    name: Names
    kind: Literal["caller", "device", "gateway"] = "caller"
    scopes: Annotated[list[Scope], Meta(max_length=SCOPES_MAX)] = msgspec.field(default_factory=list)
    plan: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,64}$")] = ""
    expires_in_s: Annotated[float, Meta(ge=1, le=315_360_000)] | None = None


class KeyRotation(Body, frozen=True):
    """For how long the secret before stays good."""

    overlap_s: Annotated[float, Meta(ge=0, le=7_776_000)] = 86_400.0


class KeySecret(msgspec.Struct, frozen=True, kw_only=True):
    """A key with its secret, which is shown once."""

    id: str
    secret: str


def register(operations: Operations[DeviceService]) -> None:
    """Register them."""
    operations.add(
        "GET",
        ALL,
        find_all,
        name="list-keys",
        summary="List API keys, without their secrets",
        tag="keys",
        scope="keys:read",
        query=PageQuery,
        answers={200: Page[Key]},
    )
    operations.add(
        "POST",
        ALL,
        add,
        name="add-key",
        summary="Make an API key; its secret is shown once",
        tag="keys",
        scope="keys:write",
        body=NewKey,
        answers={201: KeySecret},
        refusals={404: "There is no such tenant.", 409: "There are too many keys."},
    )
    operations.add(
        "POST",
        f"{ONE}/rotate",
        rotate,
        name="rotate-key",
        summary="Give a key a new secret; the one before stays good for a while",
        tag="keys",
        scope="keys:write",
        body=KeyRotation,
        answers={200: KeySecret},
        refusals={404: "There is none.", 409: "It is revoked or has ended."},
    )
    operations.add(
        "DELETE",
        ONE,
        revoke,
        name="revoke-key",
        summary="End a key",
        tag="keys",
        scope="keys:write",
        answers={204: None},
        refusals={404: "There is none."},
    )


async def find_all(service: DeviceService, asked: Asked[PageQuery, NoBody]) -> Reply:
    """Answer list-keys."""
    after = key_of(asked.query.cursor, str) or ""
    keys = sorted(service.registry.keys(asked.path["tenant"]), key=lambda key: key.id)
    found = [_described(key) for key in keys if key.id > after][: asked.query.limit + 1]
    return Reply(page_of(found, asked.query.limit, lambda key: key.id))


async def add(service: DeviceService, asked: Asked[NoQuery, NewKey]) -> Reply:
    """Answer add-key."""
    tenant, body = asked.path["tenant"], asked.body
    service.fleet.refuse_unless_tenant(tenant)
    _refuse_more_than_held(asked.caller, frozenset(body.scopes), body.kind)
    if body.plan and asked.caller.tenant != EVERY_TENANT:
        raise Refused(403, "operators-only", "only an operator of the platform says which plan a key is on")
    good = [key for key in service.registry.keys(tenant) if key.status == Status.ACTIVE.value]
    if len(good) >= service.limits.keys_max:
        raise Refused(409, "too-many-keys", f"a tenant has at most {service.limits.keys_max} keys")
    now_s = clock.unix_s()
    key, secret = service.registry.issue_key(
        tenant,
        body.name,
        Kind(body.kind),
        now_s,
        None if body.expires_in_s is None else now_s + body.expires_in_s,
        scopes=body.scopes,
        plan=body.plan,
    )
    service.journal.did(asked.caller, tenant, "key.add", subject=f"key/{key.id}")
    return Reply(KeySecret(id=key.id, secret=secret), 201)


async def rotate(service: DeviceService, asked: Asked[NoQuery, KeyRotation]) -> Reply:
    """Answer rotate-key."""
    tenant = asked.path["tenant"]
    key, now_s = _found(service, tenant, asked.path["key"]), clock.unix_s()
    _refuse_more_than_held(asked.caller, frozenset(key.scopes), key.kind)
    if key.status != Status.ACTIVE.value or (key.expires_s is not None and key.expires_s <= now_s):
        raise Refused(409, "not-current", "the key is revoked or has ended; make a new one")
    secret = service.registry.rotate_key(key.id, now_s, asked.body.overlap_s)
    service.journal.did(asked.caller, tenant, "key.rotate", subject=f"key/{key.id}")
    return Reply(KeySecret(id=key.id, secret=secret))


async def revoke(service: DeviceService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer revoke-key."""
    tenant = asked.path["tenant"]
    key = _found(service, tenant, asked.path["key"])
    service.registry.revoke_key(key.id)
    service.journal.did(asked.caller, tenant, "key.revoke", subject=f"key/{key.id}")
    return Reply(None, 204)


def _refuse_more_than_held(caller: Caller, scopes: frozenset[str], kind: str) -> None:
    wanted = scopes | ({PUBLISH} if kind != Kind.CALLER.value else set())
    if missing := sorted(wanted - caller.scopes):
        raise Refused(403, "scope-not-held", f"the caller has not {missing[0]} to give")


def _found(service: DeviceService, tenant: str, identifier: str) -> ApiKey:
    key = service.registry.key(identifier)
    if key is None or key.tenant != tenant:
        raise not_found(f"key {identifier}")
    return key


def _described(key: ApiKey) -> Key:
    return Key(
        id=key.id,
        name=key.name,
        kind=msgspec.convert(key.kind, Literal["caller", "device", "gateway"]),
        status=status_name(key.status),
        scopes=list(key.scopes),
        plan=key.plan,
        created_at=at(key.created_s),
        expires_at=at_or_none(key.expires_s),
        previous_until=at_or_none(key.previous_until_s),
        last_used_at=at_or_none(key.last_used_s),
    )
