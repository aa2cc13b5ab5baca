"""Devices as a whole: the registry has who there is, `device.db` what is known of them; both change together.

The registry is the truth, and is written last when a device comes, first when it goes. At most `devices_max`
devices a tenant: counted when the tenant is first seen, and kept up from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from routing.tenancy import registry as registered
from routing.tenancy.registry import Registry, Status
from runtime import clock
from services.device.import_lines import ImportLine
from services.device.resources import Device, StatusName, at
from services.device.store.database import Database
from services.device.store.details import Details, DetailsTable
from services.device.store.groups import GroupTable
from services.device.store.shadows import ShadowTable
from services.web.refusal import Refused, not_found


class Fleet:
    """The devices of all tenants."""

    def __init__(
        self,
        registry: Registry,
        database: Database,
        details: DetailsTable,
        groups: GroupTable,
        shadows: ShadowTable,
        *,
        devices_max: int,
    ) -> None:
        self._registry = registry
        self._database = database
        self._details = details
        self._groups = groups
        self._shadows = shadows
        self._devices_max = devices_max
        self._counts: dict[str, int] = {}

    def row(self, tenant: str, device: str) -> registered.Device:
        """Return the registration of a device; raises `Refused`."""
        row = self._registry.device(tenant, device)
        if row is None:
            raise not_found(f"device {device}")
        return row

    def is_registered(self, tenant: str, device: str) -> bool:
        """Return whether there is a device."""
        return self._registry.device(tenant, device) is not None

    def refuse_unless_tenant(self, tenant: str) -> None:
        """Refuse what belongs to a tenant that does not exist."""
        if self._registry.tenant(tenant) is None:
            raise not_found(f"tenant {tenant}")

    def find(self, tenant: str, device: str) -> Device:
        """Return a device with what is known of it; raises `Refused`."""
        return self.described(self.row(tenant, device))

    def described(self, row: registered.Device) -> Device:
        """Return a registered device with what is known of it."""
        details = self._details.find(row.tenant, row.name)
        return Device(
            device=row.name,
            tenant=row.tenant,
            status=status_name(row.status),
            created_at=at(row.created_s),
            attributes=details.attributes,
            groups=self._groups.of_device(row.tenant, row.name),
            version=details.version,
        )

    def page(self, tenant: str, after: str, limit: int) -> list[Device]:
        """Return devices by name."""
        return [self.described(row) for row in self._registry.devices_after(tenant, after, limit)]

    def refuse_too_many(self, tenant: str, more: int = 1) -> None:
        """Refuse `more` devices when a tenant may not have so many."""
        if tenant not in self._counts:
            self._counts[tenant] = self._registry.device_count(tenant)
        if self._counts[tenant] + more > self._devices_max:
            raise Refused(409, "too-many-devices", f"a tenant has at most {self._devices_max} devices")

    def refuse_unknown_groups(self, tenant: str, groups: list[str]) -> None:
        """Refuse groups that do not exist."""
        for group in groups:
            if self._groups.find(tenant, group) is None:
                raise Refused(409, "no-such-group", f"there is no group {group}; make it first")

    def register(
        self, tenant: str, device: str, groups: list[str], attributes: dict[str, Any] | None = None
    ) -> bool:
        """Add a device, or bring an existing one to what is given; return whether it is new."""
        line = ImportLine(device=device, attributes=attributes, groups=groups)
        return self.register_many(tenant, [line]) > 0

    def register_many(self, tenant: str, devices: Sequence[ImportLine]) -> int:
        """Bring devices to what is given, in one transaction; return how many are new."""
        if not devices:
            return 0
        with self._database.transaction():
            for line in devices:
                self._details.lift_tombstone(tenant, line.device)
                if line.attributes is not None:
                    self._details.put(tenant, line.device, line.attributes, clock.unix_s())
                for group in line.groups or ():
                    if self._groups.find(tenant, group) is not None:
                        self._groups.join(tenant, group, line.device)
        new = self._registry.add_devices(tenant, [line.device for line in devices], clock.unix_s())
        if tenant in self._counts:
            self._counts[tenant] += new
        return new

    def put_attributes(self, tenant: str, device: str, attributes: dict[str, Any]) -> Details:
        """Keep the attributes of a device."""
        return self._details.put(tenant, device, attributes, clock.unix_s())

    def details(self, tenant: str, device: str) -> Details:
        """Return the attributes of a device."""
        return self._details.find(tenant, device)

    def set_status(self, tenant: str, device: str, status: Status) -> None:
        """Suspend or resume a device; the ingestion gateway sees it within a second."""
        self.row(tenant, device)
        self._registry.set_device_status(tenant, device, status, clock.unix_s())

    def remove(self, tenant: str, device: str) -> None:
        """Take a device away with all that is known of it, but not its certificates."""
        if self._registry.remove_device(tenant, device) and tenant in self._counts:
            self._counts[tenant] -= 1
        with self._database.transaction():
            self._details.remove(tenant, device)
            self._shadows.remove(tenant, device)
            self._groups.leave_all(tenant, device)

    def forget_name(self, tenant: str, device: str) -> str:
        """Leave only a pseudonym of a device that was removed; return it."""
        pseudonym = self._details.pseudonym(tenant, device)
        with self._database.transaction():
            self._details.forget_name(tenant, device, clock.unix_s())
        self._database.checkpoint()
        return pseudonym

    def is_erased(self, tenant: str, device: str) -> bool:
        """Return whether a device of this name was erased."""
        return self._details.is_erased(tenant, device)


def status_name(status: str) -> StatusName:
    """Return a status of the registry as callers see it."""
    return "active" if status == Status.ACTIVE.value else "suspended"
