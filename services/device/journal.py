"""Who did what to whom: the audit log, in which a device has a pseudonym, so that its name can be forgotten.

The log is tamper-evident, so nothing in it can be changed later, not even to erase a name. It therefore never holds the
name of a device: what leads from the pseudonym to the name is in `device.db`, and goes when the device is erased.
"""

from __future__ import annotations

from typing import Final, Protocol

from services.device.store.details import DetailsTable
from services.web.passport import Caller

DEVICE: Final = "device"


class Log(Protocol):
    """What is needed of the audit log."""

    def append(self, *, actor: str, tenant: str, action: str, subject: str) -> None:
        """Write an entry, durably."""


class Journal:
    """Writes entries for what callers do."""

    def __init__(self, log: Log, details: DetailsTable) -> None:
        self._log = log
        self._details = details

    def did(self, caller: Caller, tenant: str, action: str, *, device: str = "", subject: str = "") -> None:
        """Write that a caller did something, to a device or to something else."""
        named = self._details.pseudonym(tenant, device) if device else subject
        if device and subject:
            named = f"{named}/{subject}"
        self._log.append(actor=self.actor(caller), tenant=tenant, action=action, subject=named)

    def actor(self, caller: Caller) -> str:
        """Return what the log calls a caller; one that is a device by its pseudonym."""
        if caller.device and caller.tenant:
            return self._details.pseudonym(caller.tenant, caller.device)
        return f"{caller.name}@{caller.tenant}" if caller.tenant else caller.name
