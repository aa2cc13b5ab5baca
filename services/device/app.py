"""The device service, put together: its operations, and what they work on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from aiohttp import web

from ingest.pki import DevelopmentCa, PkiError
from routing.tenancy.audit import AuditError, AuditLog
from routing.tenancy.registry import Registry, RegistryError
from services import settings as files
from services.device.api import (
    certificates,
    devices,
    groups,
    imports,
    keys,
    privacy,
    provision,
    shadows,
    tenants,
)
from services.device.certification import Certification, CertificationLimits
from services.device.fleet import Fleet
from services.device.importer import Importer, ImportLimits
from services.device.issuer import DevelopmentIssuer, Issuer
from services.device.journal import Journal
from services.device.privacy import LocalTelemetry, NoTelemetry
from services.device.provisioning import Pace, Provisioning
from services.device.service import DeviceService, ServiceLimits
from services.device.store.certificates import CertificateTable
from services.device.store.claims import ClaimTable
from services.device.store.database import Database, StoreError
from services.device.store.details import DetailsTable
from services.device.store.groups import GroupTable
from services.device.store.imports import ImportTable
from services.device.store.shadows import ShadowTable
from services.device.waiters import Waiters
from services.settings import Settings
from services.web.app import make_app
from services.web.operations import Operations
from services.web.passport import PassportVerifier
from services.web.process import StartError


def operations() -> Operations[DeviceService]:
    """Return the operations, of which the document is made too."""
    made: Operations[DeviceService] = Operations(
        "Headworks device service",
        description="Tenants, devices, groups, certificates, provisioning, imports, shadows and keys.",
        patterns={
            "serial": certificates.SERIAL,
            "import_id": imports.PATTERN,
            "claim": provision.PATTERN,
            "key": keys.PATTERN,
        },
    )
    for noun in (tenants, devices, groups, certificates, provision, shadows, imports, keys, privacy):
        noun.register(made)
    return made


@contextlib.asynccontextmanager
async def made(
    settings: Settings, passports: PassportVerifier, draining: asyncio.Event, log: Any
) -> AsyncIterator[web.Application]:
    """Open what the service works on, and give its application; raises `StartError`."""
    async with contextlib.AsyncExitStack() as open_:
        try:
            issuer = await _issuer(settings.device, open_)
            service = _service(settings, issuer, draining, log, open_)
        except (PkiError, RegistryError, StoreError, AuditError, OSError) as error:
            raise StartError(str(error)) from error
        app = make_app(operations(), service, passports, draining=draining, log=log)
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(service.run(draining))
            yield app
            running.cancel()


async def _issuer(settings: files.Device, open_: contextlib.AsyncExitStack) -> Issuer:
    if settings.issuer == "aws":
        from services.device import aws  # noqa: PLC0415  # which takes a second to load

        return await open_.enter_async_context(
            aws.opened(
                ca_arn=settings.aws_ca_arn,
                region=settings.aws_region,
                endpoint=settings.aws_endpoint,
                signing_algorithm=settings.aws_signing_algorithm,
                trust_domain=settings.trust_domain,
                deadline_s=settings.issuer_deadline_s,
            )
        )
    if not settings.ca_dir:
        raise StartError("device.ca_dir: say where the development CA is (headworks pki init)")
    return DevelopmentIssuer(DevelopmentCa(Path(settings.ca_dir)), trust_domain=settings.trust_domain)


def _service(
    settings: Settings,
    issuer: Issuer,
    draining: asyncio.Event,
    log: Any,
    open_: contextlib.AsyncExitStack,
) -> DeviceService:
    limits, folder = settings.device, Path(settings.service.data_dir)
    registry = Registry(settings.service.registry_path)
    open_.callback(registry.close)
    database = Database(folder / "device.db")
    open_.callback(database.close)
    audit = AuditLog(folder / "audit.db")
    open_.callback(audit.close)
    details, group_table, shadow_table = DetailsTable(database), GroupTable(database), ShadowTable(database)
    certificate_table, claim_table = CertificateTable(database), ClaimTable(database)
    import_table = ImportTable(database)
    fleet = Fleet(registry, database, details, group_table, shadow_table, devices_max=limits.devices_max)
    certification = Certification(
        certificate_table,
        issuer,
        CertificationLimits(
            good_max=limits.certificates_max,
            days=limits.certificate_days,
            days_max=limits.certificate_days_max,
        ),
        log,
    )
    pace = Pace(
        per_claim_per_s=limits.claims_per_s,
        wrong_per_s=limits.wrong_claims_per_s,
        burst=limits.claims_burst,
    )
    return DeviceService(
        registry=registry,
        fleet=fleet,
        groups=group_table,
        shadows=shadow_table,
        certificates=certificate_table,
        claims=claim_table,
        imports=import_table,
        certification=certification,
        provisioning=Provisioning(claim_table, certificate_table, certification, fleet, registry, pace),
        importer=Importer(
            folder / "imports",
            import_table,
            fleet,
            ImportLimits(
                bytes_max=limits.import_bytes_max,
                waiting_max=limits.imports_waiting_max,
                kept_max=limits.imports_kept_max,
            ),
            log,
        ),
        journal=Journal(audit, details),
        audit=audit,
        waiters=Waiters(limits.shadow_waiters_max, draining),
        telemetry=LocalTelemetry(Path(limits.telemetry)) if limits.telemetry else NoTelemetry(),
        limits=ServiceLimits(
            groups_max=limits.groups_max,
            claims_max=limits.claims_max,
            keys_max=limits.keys_max,
            shadow_bytes_max=limits.shadow_bytes_max,
            audit_days=limits.audit_days,
        ),
    )
