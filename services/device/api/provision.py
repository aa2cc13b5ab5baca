"""Operations on claims, and what a device does with one."""

from __future__ import annotations

from typing import Final

from routing.tenancy.identity import Kind
from runtime import clock
from services.device import claims
from services.device.api.certificates import new_certificate
from services.device.issuer import Holder
from services.device.provisioning import provisioned_by
from services.device.resources import Claim, MadeClaim, NewCertificate, NewClaim, Provision, at, at_or_none
from services.device.service import DeviceService
from services.device.store.claims import ClaimRow
from services.web.operations import Asked, NoBody, NoQuery, Operations, Reply
from services.web.page import Page, PageQuery, key_of, page_of
from services.web.refusal import Refused, not_found

ALL: Final = "/v1/tenants/{tenant}/claims"
PATTERN: Final = r"[0-9a-f]{16}"
DAY_S: Final = 86_400.0


def register(operations: Operations[DeviceService]) -> None:
    """Register them."""
    operations.add(
        "POST",
        "/v1/provision",
        provision,
        name="provision",
        summary="Issue the first certificate of a device that shows a claim",
        description=(
            "The claim is a claim certificate, shown to the API gateway in the TLS handshake, or the "
            "`token` of the "
            "body. A device that has a certificate is refused: it rotates that."
        ),
        tag="provisioning",
        scope="",
        body=Provision,
        answers={201: NewCertificate},
        refusals={
            401: "There is no such claim.",
            403: "The claim has ended, was used, or is for other devices.",
            409: "The device has a certificate already.",
            429: "Claims are shown too often.",
            503: "The issuer does not answer; try again.",
        },
    )
    operations.add(
        "GET",
        ALL,
        find_all,
        name="list-claims",
        summary="List claims, without their secrets",
        tag="provisioning",
        scope="certificates:write",
        query=PageQuery,
        answers={200: Page[Claim]},
    )
    operations.add(
        "POST",
        ALL,
        add,
        name="add-claim",
        summary="Make a claim: a token, or a claim certificate for a signing request",
        tag="provisioning",
        scope="certificates:write",
        body=NewClaim,
        answers={201: MadeClaim},
        refusals={
            404: "There is no such tenant.",
            409: "The group does not exist, or there are too many claims.",
            503: "The issuer does not answer; try again.",
        },
    )
    operations.add(
        "DELETE",
        f"{ALL}/{{claim}}",
        revoke,
        name="revoke-claim",
        summary="End a claim; devices that were provisioned with it stay",
        tag="provisioning",
        scope="certificates:write",
        answers={204: None},
        refusals={404: "There is none.", 503: "The issuer does not answer; try again."},
    )


async def provision(service: DeviceService, asked: Asked[NoQuery, Provision]) -> Reply:
    """Answer provision."""
    claim, new = await service.provisioning.provision(asked.caller, asked.body)
    holder = Holder(tenant=claim.tenant, kind=Kind.DEVICE, name=asked.body.device)
    service.journal.did(
        provisioned_by(claim),
        claim.tenant,
        "device.provision",
        device=holder.name,
        subject=f"certificate/{new.serial}",
    )
    return Reply(new_certificate(holder, new), 201)


async def find_all(service: DeviceService, asked: Asked[PageQuery, NoBody]) -> Reply:
    """Answer list-claims."""
    after = key_of(asked.query.cursor, str) or ""
    rows = service.claims.page(asked.path["tenant"], after, asked.query.limit + 1)
    return Reply(page_of([_described(row) for row in rows], asked.query.limit, lambda claim: claim.claim))


async def add(service: DeviceService, asked: Asked[NoQuery, NewClaim]) -> Reply:
    """Answer add-claim."""
    tenant, body = asked.path["tenant"], asked.body
    service.fleet.refuse_unless_tenant(tenant)
    service.fleet.refuse_unknown_groups(tenant, [body.group] if body.group else [])
    if service.claims.count(tenant) >= service.limits.claims_max:
        raise Refused(409, "too-many-claims", f"a tenant has at most {service.limits.claims_max} claims")
    secret, now_s = claims.new_secret(), clock.unix_s()
    expires_s, certificate, chain = now_s + body.expires_in_s, "", ""
    if body.csr:
        holder = Holder(tenant=tenant, kind=Kind.CLAIM, name=secret.id)
        days = max(1, -int(-body.expires_in_s // DAY_S))
        new, _ = await service.certification.issue(holder, body.csr, days)
        certificate, chain = new.certificate, new.chain
    service.claims.add(
        ClaimRow(
            id=secret.id,
            tenant=tenant,
            hash=None if body.csr else secret.hash,
            devices=body.devices,
            into_group=body.group,
            uses_max=body.uses_max,
            uses=0,
            created_s=now_s,
            expires_s=expires_s,
        )
    )
    service.journal.did(asked.caller, tenant, "claim.add", subject=f"claim/{secret.id}")
    made = MadeClaim(
        claim=secret.id,
        expires_at=at(expires_s),
        token="" if body.csr else secret.token,
        certificate=certificate,
        chain=chain,
    )
    return Reply(made, 201, {"Location": f"/v1/tenants/{tenant}/claims/{secret.id}"})


async def revoke(service: DeviceService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer revoke-claim."""
    tenant, identifier = asked.path["tenant"], asked.path["claim"]
    row = service.claims.find(identifier)
    if row is None or row.tenant != tenant:
        raise not_found(f"claim {identifier}")
    service.claims.revoke(identifier, clock.unix_s())
    await service.certification.revoke_all(Holder(tenant=tenant, kind=Kind.CLAIM, name=identifier))
    service.journal.did(asked.caller, tenant, "claim.revoke", subject=f"claim/{identifier}")
    return Reply(None, 204)


def _described(row: ClaimRow) -> Claim:
    return Claim(
        claim=row.id,
        kind="certificate" if row.hash is None else "token",
        devices=row.devices,
        group=row.into_group,
        uses_max=row.uses_max,
        uses=row.uses,
        created_at=at(row.created_s),
        expires_at=at(row.expires_s),
        revoked_at=at_or_none(row.revoked_s),
    )
