"""The device service, put together: its operations, and what they work on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from routing.tenancy.registry import Registry
from services.device.service import DeviceService
from services.settings import Settings
from services.web.app import make_app
from services.web.operations import Operations
from services.web.passport import PassportVerifier


def operations() -> Operations[DeviceService]:
    """Return the operations, of which the document is made too."""
    return Operations("Headworks device service", description="Tenants, devices and what belongs to them.")


@contextlib.asynccontextmanager
async def made(
    settings: Settings, passports: PassportVerifier, draining: asyncio.Event, log: Any
) -> AsyncIterator[web.Application]:
    """Open what the service works on, and give its application."""
    registry = Registry(settings.service.registry_path)
    try:
        yield make_app(operations(), DeviceService(registry), passports, draining=draining, log=log)
    finally:
        registry.close()
