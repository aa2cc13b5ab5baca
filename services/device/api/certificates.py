"""Operations on the certificates of a device."""

from __future__ import annotations

from typing import Final

from routing.tenancy.identity import Kind
from runtime import clock
from services.device.issuer import Holder, Issued
from services.device.resources import (
    Certificate,
    NewCertificate,
    Rotation,
    SigningRequest,
    at,
    at_or_none,
)
from services.device.service import DeviceService
from services.device.store.certificates import CertificateRow
from services.web.operations import Asked, NoBody, NoQuery, Operations, Reply
from services.web.page import Page, PageQuery, key_of, page_of

ALL: Final = "/v1/tenants/{tenant}/devices/{device}/certificates"
ONE: Final = "/v1/tenants/{tenant}/devices/{device}/certificates/{serial}"
SERIAL: Final = r"[0-9a-f]{1,40}"
REFUSALS: Final = {
    404: "There is no such device, or no such certificate.",
    503: "The issuer does not answer; try again.",
}


def register(operations: Operations[DeviceService]) -> None:
    """Register them."""
    operations.add(
        "GET",
        ALL,
        find_all,
        name="list-certificates",
        summary="List the certificates of a device",
        tag="certificates",
        scope="devices:read",
        query=PageQuery,
        answers={200: Page[Certificate]},
        refusals={404: REFUSALS[404]},
    )
    operations.add(
        "POST",
        ALL,
        issue,
        name="issue-certificate",
        summary="Issue a certificate for a signing request",
        tag="certificates",
        scope="certificates:write",
        body=SigningRequest,
        answers={201: NewCertificate},
        refusals={**REFUSALS, 409: "The device has as many good certificates as it may."},
    )
    operations.add(
        "DELETE",
        ONE,
        revoke,
        name="revoke-certificate",
        summary="Revoke a certificate: its sessions are closed and it is refused within a second",
        tag="certificates",
        scope="certificates:write",
        answers={204: None},
        refusals=REFUSALS,
    )
    operations.add(
        "POST",
        f"{ONE}/rotate",
        rotate,
        name="rotate-certificate",
        summary="Issue a successor; the certificate before stays good for a while",
        tag="certificates",
        scope="certificates:write",
        body=Rotation,
        answers={201: NewCertificate},
        refusals={**REFUSALS, 409: "It is not current, or the device has as many as it may."},
    )


async def find_all(service: DeviceService, asked: Asked[PageQuery, NoBody]) -> Reply:
    """Answer list-certificates."""
    holder = _holder(service, asked.path["tenant"], asked.path["device"])
    after = key_of(asked.query.cursor, str) or ""
    rows = service.certificates.page(
        holder.tenant, holder.kind.value, holder.name, after, asked.query.limit + 1
    )
    found = [described(row, clock.unix_s()) for row in rows]
    return Reply(page_of(found, asked.query.limit, lambda certificate: certificate.serial))


async def issue(service: DeviceService, asked: Asked[NoQuery, SigningRequest]) -> Reply:
    """Answer issue-certificate."""
    holder = _holder(service, asked.path["tenant"], asked.path["device"])
    new, _ = await service.certification.issue(holder, asked.body.csr, asked.body.days)
    await _refuse_if_gone(service, holder, new)
    service.journal.did(
        asked.caller,
        holder.tenant,
        "certificate.issue",
        device=holder.name,
        subject=f"certificate/{new.serial}",
    )
    return Reply(new_certificate(holder, new), 201)


async def revoke(service: DeviceService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer revoke-certificate; a device that is removed may still have some."""
    holder = Holder(tenant=asked.path["tenant"], kind=Kind.DEVICE, name=asked.path["device"])
    serial = asked.path["serial"]
    await service.certification.revoke(holder, serial)
    service.journal.did(
        asked.caller,
        holder.tenant,
        "certificate.revoke",
        device=holder.name,
        subject=f"certificate/{serial}",
    )
    return Reply(None, 204)


async def rotate(service: DeviceService, asked: Asked[NoQuery, Rotation]) -> Reply:
    """Answer rotate-certificate."""
    holder = _holder(service, asked.path["tenant"], asked.path["device"])
    serial, body = asked.path["serial"], asked.body
    new, _ = await service.certification.rotate(holder, serial, body.csr, body.days, body.overlap_s)
    await _refuse_if_gone(service, holder, new)
    service.journal.did(
        asked.caller,
        holder.tenant,
        "certificate.rotate",
        device=holder.name,
        subject=f"certificate/{serial}",
    )
    return Reply(new_certificate(holder, new), 201)


async def _refuse_if_gone(service: DeviceService, holder: Holder, new: Issued) -> None:
    """Hand no certificate out for a device that was removed while it was issued."""
    if not service.fleet.is_registered(holder.tenant, holder.name):
        await service.certification.revoke(holder, new.serial)
        service.fleet.row(holder.tenant, holder.name)


def _holder(service: DeviceService, tenant: str, device: str) -> Holder:
    service.fleet.row(tenant, device)
    return Holder(tenant=tenant, kind=Kind.DEVICE, name=device)


def new_certificate(holder: Holder, new: Issued) -> NewCertificate:
    """Return a certificate as it is handed out."""
    return NewCertificate(
        device=holder.name,
        tenant=holder.tenant,
        certificate=new.certificate,
        chain=new.chain,
        serial=new.serial,
        not_after=at(new.not_after_s),
    )


def described(row: CertificateRow, now_s: float) -> Certificate:
    """Return a certificate as callers see it."""
    return Certificate(
        serial=row.serial,
        fingerprint=row.fingerprint,
        status=(
            "revoked"
            if row.revoked_s is not None
            else "expired"
            if row.not_after_s <= now_s
            else "active"
            if row.revoke_at_s is None
            else "replaced"
        ),
        issued_at=at(row.issued_s),
        not_after=at(row.not_after_s),
        revoke_at=at_or_none(row.revoke_at_s),
        revoked_at=at_or_none(row.revoked_s),
    )
