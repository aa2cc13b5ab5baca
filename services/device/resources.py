"""What callers see and send: tenants, devices, groups, certificates, shadows, claims, imports, keys.

Limits: names as everywhere; at most `ATTRIBUTES_MAX` attributes of a device, together `ATTRIBUTES_BYTES_MAX`
of JSON.
"""

from __future__ import annotations

import datetime as dt
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from services.device.store.imports import LineFailure
from services.web.operations import NAME
from services.web.refusal import unprocessable

ATTRIBUTES_MAX: Final = 64
ATTRIBUTES_BYTES_MAX: Final = 8192
Names = Annotated[str, Meta(pattern=f"^{NAME}$")]
AttributeName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{1,64}$")]
AttributeText = Annotated[str, Meta(max_length=1024)]
AttributeNumber = Annotated[int, Meta(ge=-(2**53) + 1, le=2**53 - 1)]
Attribute = AttributeText | bool | AttributeNumber | float
Attributes = Annotated[dict[AttributeName, Attribute], Meta(max_length=ATTRIBUTES_MAX)]
Text = Annotated[str, Meta(max_length=256)]
SigningRequestText = Annotated[
    str, Meta(min_length=1, max_length=16_384, description="A PEM signing request.")
]
Days = Annotated[int, Meta(ge=1, le=3650)]
StatusName = Literal["active", "suspended"]


def at(unix_s: float) -> dt.datetime:
    """Return a time as callers see it: RFC 3339, UTC."""
    return dt.datetime.fromtimestamp(round(unix_s, 3), tz=dt.UTC)


def at_or_none(unix_s: float | None) -> dt.datetime | None:
    """Return a time as callers see it, or None."""
    return None if unix_s is None else at(unix_s)


def refuse_large_attributes(attributes: dict[str, Any]) -> None:
    """Refuse more attributes than a device may have."""
    if len(attributes) > ATTRIBUTES_MAX:
        raise unprocessable(f"attributes: at most {ATTRIBUTES_MAX}")
    if len(msgspec.json.encode(attributes)) > ATTRIBUTES_BYTES_MAX:
        raise unprocessable(f"attributes: at most {ATTRIBUTES_BYTES_MAX} bytes of JSON")


class Body(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What bodies of requests derive from."""


class Tenant(msgspec.Struct, frozen=True, kw_only=True):
    """A customer of the platform, and the plan that limits it."""

    tenant: str
    plan: str
    status: StatusName
    created_at: dt.datetime


class NewTenant(Body, frozen=True):
    """A tenant to add."""

    tenant: Names
    plan: Names = "default"


class TenantPatch(Body, frozen=True):
    """What to change of a tenant."""

    plan: Names | msgspec.UnsetType = msgspec.UNSET
    status: StatusName | msgspec.UnsetType = msgspec.UNSET


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device of a tenant; `version` counts the changes of its attributes."""

    device: str
    tenant: str
    status: StatusName
    created_at: dt.datetime
    attributes: dict[str, Any]
    groups: list[str]
    version: int


class NewDevice(Body, frozen=True):
    """A device to add."""

    device: Names
    attributes: Attributes = msgspec.field(default_factory=dict)
    groups: Annotated[list[Names], Meta(max_length=64)] = msgspec.field(default_factory=list)


class DevicePatch(Body, frozen=True):
    """A merge patch (RFC 7396): an attribute that is null is removed, and all are when `attributes` is."""

    attributes: (
        Annotated[dict[AttributeName, Attribute | None], Meta(max_length=2 * ATTRIBUTES_MAX)]
        | msgspec.UnsetType
        | None
    ) = msgspec.UNSET


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """A group of devices."""

    group: str
    description: str
    created_at: dt.datetime


class NewGroup(Body, frozen=True):
    """A group to make."""

    group: Names
    description: Text = ""


class Member(msgspec.Struct, frozen=True):
    """A device in a group."""

    device: str


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate of a device. `replaced` is good until `revoke_at`, `revoked` no more."""

    serial: str
    fingerprint: str
    status: Literal["active", "replaced", "revoked", "expired"]
    issued_at: dt.datetime
    not_after: dt.datetime
    revoke_at: dt.datetime | None
    revoked_at: dt.datetime | None


class SigningRequest(Body, frozen=True):
    """A request for a certificate; of the signing request the key alone counts."""

    csr: SigningRequestText
    days: Days | None = None


class Rotation(Body, frozen=True):
    """A request for a successor; the certificate before stays good for `overlap_s`."""

    csr: SigningRequestText
    days: Days | None = None
    overlap_s: Annotated[float, Meta(ge=0, le=7_776_000)] = 86_400.0


class NewCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate that was issued, with the chain to its root, as PEM."""

    device: str
    tenant: str
    certificate: str
    chain: str
    serial: str
    not_after: dt.datetime


class Provision(Body, frozen=True):
    """A request for a device's first certificate; `token` unless the caller shows a claim certificate."""

    csr: SigningRequestText
    device: Names
    token: Annotated[str, Meta(max_length=256)] = ""


class NewClaim(Body, frozen=True):
    """A claim to make. With `csr` it is a claim certificate, else a token."""

    devices: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=128,
            pattern=r"^(?:[A-Za-z0-9._~:@=?-]*\*){0,4}[A-Za-z0-9._~:@=?-]*$",
            description="The names it is for: `*` is any characters (at most four), `?` is one.",
        ),
    ] = "*"
    group: Annotated[str, Meta(pattern=f"^({NAME})?$", description="Where new devices go.")] = ""
    uses_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    expires_in_s: Annotated[float, Meta(ge=1, le=31_536_000)] = 86_400.0
    csr: Annotated[str, Meta(max_length=16_384)] = ""


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A claim without its secret."""

    claim: str
    kind: Literal["token", "certificate"]
    devices: str
    group: str
    uses_max: int
    uses: int
    created_at: dt.datetime
    expires_at: dt.datetime
    revoked_at: dt.datetime | None


class MadeClaim(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A claim with its token, which is shown once, or its certificate."""

    claim: str
    expires_at: dt.datetime
    token: str = ""
    certificate: str = ""
    chain: str = ""


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One side of a shadow; `version` is its ETag."""

    state: dict[str, Any]
    version: int
    updated_at: dt.datetime | None


class Shadow(msgspec.Struct, frozen=True, kw_only=True):
    """A shadow. `delta` is what of the desired state the device has not reported."""

    desired: Side
    reported: Side
    delta: dict[str, Any]


class Import(msgspec.Struct, frozen=True, kw_only=True):
    """A bulk import and how far it is; of the lines that failed the first are named."""

    id: str
    status: Literal["waiting", "running", "finished", "failed"]
    created_at: dt.datetime
    finished_at: dt.datetime | None
    lines: int
    done: int
    failed: int
    failures: list[LineFailure]


class Erased(msgspec.Struct, frozen=True, kw_only=True):
    """What is left of a device that was erased: the name that the audit log knows it by."""

    pseudonym: str
    erased_at: dt.datetime
    certificates_revoked: int
    keys_revoked: int
