"""First certificates, for devices that show a claim: a claim certificate or a token.

A claim is used before the certificate is issued and given back when none is, so that two devices cannot share
the last use. Wrong tokens are paced over all callers, good claims each for itself.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from routing.limits.bucket import TokenBucket
from routing.tenancy.identity import Kind
from routing.tenancy.registry import Registry, Status
from runtime import clock
from services.device import claims
from services.device.certification import Certification
from services.device.fleet import Fleet
from services.device.issuer import Holder, Issued
from services.device.resources import Provision
from services.device.store.certificates import CertificateTable
from services.device.store.claims import ClaimRow, ClaimTable
from services.web.passport import Caller
from services.web.refusal import Refused

SCOPE: Final = "claims:provision"
BUCKETS_MAX: Final = 10_000


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How often a claim may be used, and how often anybody may be wrong."""

    per_claim_per_s: float
    wrong_per_s: float
    burst: float


class Provisioning:
    """Turns claims into devices with certificates."""

    def __init__(
        self,
        table: ClaimTable,
        certificates: CertificateTable,
        certification: Certification,
        fleet: Fleet,
        registry: Registry,
        pace: Pace,
    ) -> None:
        self._table = table
        self._certificates = certificates
        self._certification = certification
        self._fleet = fleet
        self._registry = registry
        self._pace = pace
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        self._wrong = TokenBucket(rate_per_s=pace.wrong_per_s, burst=pace.burst, now_s=clock.monotonic_s())

    async def provision(self, caller: Caller, asked: Provision) -> tuple[ClaimRow, Issued]:
        """Issue the first certificate of a device; raises `Refused`."""
        claim = self._claim(caller, asked.token)
        self._keep_pace(claim)
        claims.refuse_unless_usable(claim, asked.device, clock.unix_s())
        holder = Holder(tenant=claim.tenant, kind=Kind.DEVICE, name=asked.device)
        self._refuse_unless_new(holder)
        if not self._table.take_use(claim.id):
            raise Refused(403, "claim-used", "the claim has been used as often as it may be")
        try:
            issued, row = await self._certification.issue(holder, asked.csr, None)
        except BaseException:
            self._table.give_use_back(claim.id)
            raise
        others = self._certificates.good(holder.tenant, holder.kind.value, holder.name, clock.unix_s())
        if [other.serial for other in others] != [row.serial]:  # somebody else was first meanwhile
            await self._certification.revoke(holder, row.serial)
            raise _already(asked.device)
        self._fleet.register(claim.tenant, asked.device, [claim.into_group] if claim.into_group else [])
        return claim, issued

    def _claim(self, caller: Caller, token: str) -> ClaimRow:
        if token:
            return self._claim_of_token(token)
        if SCOPE not in caller.scopes:
            raise Refused(
                401, "wrong-claim", "show a claim certificate to the API gateway, or a token in the body"
            )
        row = self._table.find(caller.name)
        if row is None or row.tenant != caller.tenant or row.hash is not None:
            raise _wrong_claim()
        return row

    def _claim_of_token(self, token: str) -> ClaimRow:
        now_s = clock.monotonic_s()
        if self._wrong.available(now_s) < 1:
            raise _too_fast(self._wrong.wait_s(1, now_s))
        identifier = claims.identifier_of(token)
        row = self._table.find(identifier) if identifier else None
        if not claims.is_token_of(row, token):
            self._wrong.take(1, now_s)
            raise _wrong_claim()
        assert row is not None
        return row

    def _keep_pace(self, claim: ClaimRow) -> None:
        now_s = clock.monotonic_s()
        bucket = self._buckets.get(claim.id)
        if bucket is None:
            bucket = TokenBucket(rate_per_s=self._pace.per_claim_per_s, burst=self._pace.burst, now_s=now_s)
            self._buckets[claim.id] = bucket
            if len(self._buckets) > BUCKETS_MAX:
                self._buckets.popitem(last=False)
        if bucket.available(now_s) < 1:
            raise _too_fast(bucket.wait_s(1, now_s))
        bucket.take(1, now_s)

    def _refuse_unless_new(self, holder: Holder) -> None:
        """Refuse a device that has a certificate: a claim must not let anybody take its place."""
        tenant = self._registry.tenant(holder.tenant)
        if tenant is None or tenant.status != Status.ACTIVE.value:
            raise Refused(403, "suspended", "the tenant is suspended")
        if self._fleet.is_erased(holder.tenant, holder.name):
            raise Refused(403, "erased", "a device of this name was erased; add it by name to use it again")
        device = self._registry.device(holder.tenant, holder.name)
        if device is None:
            self._fleet.refuse_too_many(holder.tenant)
        elif device.status != Status.ACTIVE.value:
            raise Refused(403, "suspended", "the device is suspended")
        if self._certificates.good(holder.tenant, holder.kind.value, holder.name, clock.unix_s()):
            raise _already(holder.name)


def _wrong_claim() -> Refused:
    return Refused(401, "wrong-claim", "there is no such claim")


def _already(device: str) -> Refused:
    return Refused(409, "already-provisioned", f"{device} has a certificate; rotate that, or revoke it first")


def _too_fast(wait_s: float) -> Refused:
    return Refused(429, "too-many-claims", "claims are shown too often; wait", retry_after_s=max(wait_s, 1.0))


def provisioned_by(claim: ClaimRow) -> Caller:
    """Return who the audit log says has provisioned a device: the claim."""
    return Caller(tenant=claim.tenant, name=f"claim/{claim.id}", scopes=frozenset())
