"""What the operations of the device service work on."""

from __future__ import annotations

from routing.tenancy.registry import Registry


class DeviceService:
    """The state of the service."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
