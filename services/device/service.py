"""What the operations of the device service work on."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from routing.tenancy.audit import AuditLog
from routing.tenancy.registry import Registry
from runtime import clock
from services.device.certification import Certification
from services.device.fleet import Fleet
from services.device.importer import Importer
from services.device.journal import Journal
from services.device.privacy import Telemetry
from services.device.provisioning import Provisioning
from services.device.store.certificates import CertificateTable
from services.device.store.claims import ClaimTable
from services.device.store.groups import GroupTable
from services.device.store.imports import ImportTable
from services.device.store.shadows import ShadowTable
from services.device.waiters import Waiters

DAY_S: Final = 86_400.0


class ServiceLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Limits that no part keeps for itself."""

    groups_max: int
    claims_max: int
    keys_max: int
    shadow_bytes_max: int
    audit_days: int


class DeviceService:
    """The parts of the service, open. `run` must be running."""

    def __init__(
        self,
        *,
        registry: Registry,
        fleet: Fleet,
        groups: GroupTable,
        shadows: ShadowTable,
        certificates: CertificateTable,
        claims: ClaimTable,
        imports: ImportTable,
        certification: Certification,
        provisioning: Provisioning,
        importer: Importer,
        journal: Journal,
        audit: AuditLog,
        waiters: Waiters,
        telemetry: Telemetry,
        limits: ServiceLimits,
    ) -> None:
        self.registry = registry
        self.fleet = fleet
        self.groups = groups
        self.shadows = shadows
        self.certificates = certificates
        self.claims = claims
        self.imports = imports
        self.certification = certification
        self.provisioning = provisioning
        self.importer = importer
        self.journal = journal
        self.audit = audit
        self.waiters = waiters
        self.telemetry = telemetry
        self.limits = limits

    async def run(self, draining: asyncio.Event) -> None:
        """Do what is not for a request to wait for, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.certification.run())
            tasks.create_task(self.importer.run())
            tasks.create_task(self._keep_house())
            await draining.wait()
            self.waiters.let_go()

    async def _keep_house(self) -> None:
        """Once a day: let go of what is past its time."""
        while True:
            now_s = clock.unix_s()
            self.audit.prune(now_s - self.limits.audit_days * DAY_S)
            self.claims.forget_expired(now_s - DAY_S)
            await asyncio.sleep(DAY_S)
