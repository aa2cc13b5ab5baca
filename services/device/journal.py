"""Who did what to whom: the audit log, in which a device has a pseudonym, so that its name can be forgotten.

The log is tamper-evident, so nothing in it can be changed later, not even to erase a name. It therefore never
holds the name of a device: what leads from the pseudonym to the name is in `device.db`, and goes when the
device is erased.
"""

from __future__ import annotations

import datetime as dt
import re
from typing import Final

import msgspec

from routing.tenancy.audit import AuditLog
from runtime import clock
from services.device.resources import at
from services.device.store.details import DetailsTable
from services.web.passport import Caller

PSEUDONYM: Final = re.compile(r"device-[0-9a-f]{18}")


class Noted(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was done. A device that was erased has its pseudonym in place of its name."""

    number: int
    at: dt.datetime
    actor: str
    action: str
    subject: str
    device: str
    seal: str


class Journal:
    """Writes entries for what callers do, and reads them back with the names that are not forgotten."""

    def __init__(self, log: AuditLog, details: DetailsTable) -> None:
        self._log = log
        self._details = details

    def did(self, caller: Caller, tenant: str, action: str, *, device: str = "", subject: str = "") -> None:
        """Write that a caller did something, to a device or to something else."""
        named = subject
        if device:
            named = self._details.pseudonym(tenant, device) + (f"/{subject}" if subject else "")
        self._append(self._actor(caller), tenant, action, named)

    def happened(self, actor: str, tenant: str, action: str, subject: str) -> None:
        """Write what the service did by itself, for somebody who asked for it earlier."""
        self._append(actor, tenant, action, subject)

    def _append(self, actor: str, tenant: str, action: str, subject: str) -> None:
        self._log.append(actor=actor, tenant=tenant, action=action, subject=subject, now_s=clock.unix_s())

    def page(self, tenant: str, before: int | None, limit: int, device: str) -> list[Noted]:
        """Return entries of a tenant, the newest first; of one device when it is named."""
        subjects = []
        if device:
            pseudonym = self._details.known_pseudonym(tenant, device)
            if pseudonym is None:
                return []
            subjects = [pseudonym]
        entries = self._log.page(tenant, before=before, limit=limit, subjects=subjects)
        found = [PSEUDONYM.findall(f"{entry.actor} {entry.subject}") for entry in entries]
        names = self._details.names_of(sorted({name for each in found for name in each}))

        def named(text: str) -> str:
            return PSEUDONYM.sub(lambda match: names.get(match[0], match[0]), text)

        return [
            Noted(
                number=entry.number,
                at=at(entry.at_s),
                actor=named(entry.actor),
                action=entry.action,
                subject=named(entry.subject),
                device=names.get(entry.subject.partition("/")[0], ""),
                seal=entry.seal,
            )
            for entry in entries
        ]

    def _actor(self, caller: Caller) -> str:
        if caller.device and caller.tenant:
            return self._details.pseudonym(caller.tenant, caller.device)
        return f"{caller.name}@{caller.tenant}" if caller.tenant else caller.name or "somebody with a token"
