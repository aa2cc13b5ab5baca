"""Certificates over their life: issued, replaced, revoked. What is to be done is written first."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
from cryptography import x509

from ingest.pki import PkiError, signing_request
from runtime import clock
from services.device.issuer import Holder, Issued, Issuer, IssuerError
from services.device.store.certificates import CertificateRow, CertificateTable
from services.web.refusal import Refused, not_found, unprocessable

BATCH: Final = 1000
STEP_S: Final = 1.0
RETRY_S: Final = 5.0
DAY_S: Final = 86_400.0
REVOKE_DEADLINE_S: Final = 30.0


class CertificationLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How many certificates a device may have that are good, and how long one lasts."""

    good_max: int
    days: int
    days_max: int


class Certification:
    """Issues and revokes; `run` must be running for what is due later."""

    def __init__(
        self, table: CertificateTable, issuer: Issuer, limits: CertificationLimits, log: Any
    ) -> None:
        self._table = table
        self._issuer = issuer
        self.limits = limits
        self._log = log
        self._revoking = asyncio.Lock()

    async def issue(
        self, holder: Holder, request_pem: str, days: int | None
    ) -> tuple[Issued, CertificateRow]:
        """Issue a certificate for a signing request; raises `Refused`."""
        request = checked(request_pem)
        self.refuse_too_many(holder)
        days = min(days or self.limits.days, self.limits.days_max)
        try:
            new = await self._issuer.sign(request, holder, days)
        except IssuerError as error:
            raise refusal_of(error) from error
        row = CertificateRow(
            serial=new.serial,
            tenant=holder.tenant,
            kind=holder.kind.value,
            name=holder.name,
            fingerprint=new.fingerprint,
            issued_s=clock.unix_s(),
            not_after_s=new.not_after_s,
        )
        self._table.add(row)
        return new, row

    def refuse_too_many(self, holder: Holder) -> None:
        """Refuse to issue when there are as many good certificates as may be."""
        good = self._table.good(holder.tenant, holder.kind.value, holder.name, clock.unix_s())
        if len(good) >= self.limits.good_max:
            raise Refused(
                409, "too-many-certificates", f"there are {len(good)} good ones already; revoke one first"
            )

    def find(self, holder: Holder, serial: str) -> CertificateRow:
        """Return a certificate of somebody; raises `Refused`."""
        row = self._table.find(holder.tenant, holder.kind.value, holder.name, serial)
        if row is None:
            raise not_found(f"certificate {serial}")
        return row

    async def rotate(
        self, holder: Holder, serial: str, request_pem: str, days: int | None, overlap_s: float
    ) -> tuple[Issued, CertificateRow]:
        """Issue a successor; the old one is good for `overlap_s` more."""
        old = self.find(holder, serial)
        if not old.is_good(clock.unix_s()) or old.revoke_at_s is not None:
            raise Refused(409, "not-current", "this certificate is revoked, replaced or has ended")
        new, row = await self.issue(holder, request_pem, days)
        self._table.revoke_at(serial, clock.unix_s() + overlap_s)
        if overlap_s <= 0:
            await self.revoke_due()
        return new, row

    async def revoke(self, holder: Holder, serial: str) -> None:
        """Revoke a certificate; the ingestion gateway can see it when this returns."""
        self.find(holder, serial)
        self._table.revoke_at(serial, clock.unix_s())
        await self.revoke_due()

    async def revoke_all(self, holder: Holder) -> int:
        """Revoke all good certificates of somebody; return how many."""
        good = self._table.good(holder.tenant, holder.kind.value, holder.name, clock.unix_s())
        for row in good:
            self._table.revoke_at(row.serial, clock.unix_s())
        if good:
            await self.revoke_due()
        return len(good)

    async def revoke_due(self) -> None:
        """Revoke what is due; raises `Refused` when the issuer does not, and it is tried again later."""
        try:
            await self._revoke_due()
        except IssuerError as error:
            raise refusal_of(error) from error
        except TimeoutError as error:
            raise refusal_of(IssuerError("the issuer took too long", retriable=True)) from error

    async def _revoke_due(self) -> None:
        async with self._revoking:
            while due := self._table.due(clock.unix_s(), BATCH):
                serials = [row.serial for row in due]
                async with asyncio.timeout(REVOKE_DEADLINE_S):
                    await self._issuer.revoke(serials)
                self._table.revoked(serials, clock.unix_s())

    async def run(self) -> None:
        """Revoke what becomes due, and keep the revocation list fresh, until cancelled."""
        refresh_s = clock.monotonic_s()
        while True:
            wait_s = STEP_S
            try:
                await self._revoke_due()
                if clock.monotonic_s() >= refresh_s:
                    await self._issuer.refresh()
                    self._table.forget_expired(clock.unix_s() - DAY_S)
                    refresh_s = clock.monotonic_s() + DAY_S
            except (IssuerError, TimeoutError) as error:
                self._log.error("revocation_failed", why=str(error) or "the issuer took too long")
                wait_s = RETRY_S
            await asyncio.sleep(wait_s)


def checked(request_pem: str) -> x509.CertificateSigningRequest:
    """Return a signing request whose sender holds its key; raises `Refused`."""
    try:
        return signing_request(request_pem.encode())
    except (PkiError, UnicodeEncodeError) as error:
        raise unprocessable(str(error), "invalid-signing-request") from error


def refusal_of(error: IssuerError) -> Refused:
    """Return what the caller is told when the issuer does not do it."""
    if error.retriable:
        return Refused(503, "issuer-unavailable", str(error), retry_after_s=RETRY_S)
    return unprocessable(str(error), "not-issuable")
