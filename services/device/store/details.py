"""What is known of a device beside its registration: attributes, a pseudonym, a tombstone."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any, Final

import msgspec

from services.device.store.database import Database

PSEUDONYM_BYTES: Final = 9
PEPPER: Final = "tombstones"


class Details(msgspec.Struct, frozen=True):
    """Attributes of a device, and how often they have changed. Version 0 is of a device that has none."""

    attributes: dict[str, Any] = msgspec.field(default_factory=dict)
    version: int = 0
    updated_s: float | None = None


class DetailsTable:
    """Details by device; and, for the audit log, names that can be forgotten."""

    def __init__(self, database: Database) -> None:
        self._database = database
        database.change("INSERT OR IGNORE INTO secrets VALUES (?, ?)", (PEPPER, secrets.token_bytes(32)))
        self._pepper: bytes = database.rows("SELECT value FROM secrets WHERE name = ?", (PEPPER,))[0][0]

    def find(self, tenant: str, device: str) -> Details:
        """Return what is known of a device."""
        rows = self._database.rows(
            "SELECT attributes, version, updated_s FROM details WHERE tenant = ? AND device = ?",
            (tenant, device),
        )
        if not rows:
            return Details()
        return Details(msgspec.json.decode(rows[0][0], type=dict[str, Any]), rows[0][1], rows[0][2])

    def put(self, tenant: str, device: str, attributes: dict[str, Any], now_s: float) -> Details:
        """Keep attributes; what is the same already does not count as a change."""
        before = self.find(tenant, device)
        text = msgspec.json.encode(attributes, order="sorted").decode()
        if text == msgspec.json.encode(before.attributes, order="sorted").decode():
            return before
        after = Details(attributes, before.version + 1, now_s)
        self._database.change(
            "INSERT INTO details VALUES (?, ?, ?, ?, ?) ON CONFLICT (tenant, device) DO UPDATE SET "
            "attributes = excluded.attributes, version = excluded.version, updated_s = excluded.updated_s",
            (tenant, device, text, after.version, now_s),
        )
        return after

    def remove(self, tenant: str, device: str) -> None:
        """Forget what is known of a device, but its pseudonym."""
        self._database.change("DELETE FROM details WHERE tenant = ? AND device = ?", (tenant, device))

    # Names that can be forgotten.

    def pseudonym(self, tenant: str, device: str) -> str:
        """Return what the audit log calls a device; nobody can tell its name from it."""
        self._database.change(
            "INSERT OR IGNORE INTO pseudonyms VALUES (?, ?, ?)",
            (tenant, device, f"device-{secrets.token_hex(PSEUDONYM_BYTES)}"),
        )
        found = self.known_pseudonym(tenant, device)
        assert found is not None
        return found

    def known_pseudonym(self, tenant: str, device: str) -> str | None:
        """Return the pseudonym of a device, or None when it never had one."""
        rows = self._database.rows(
            "SELECT pseudonym FROM pseudonyms WHERE tenant = ? AND device = ?", (tenant, device)
        )
        return str(rows[0][0]) if rows else None

    def names_of(self, pseudonyms: list[str]) -> dict[str, str]:
        """Return the devices behind pseudonyms, as far as they are not forgotten."""
        wanted = msgspec.json.encode(pseudonyms).decode()
        return dict(
            self._database.rows(
                "SELECT pseudonym, device FROM pseudonyms WHERE pseudonym IN (SELECT value FROM "
                "json_each(?))",
                (wanted,),
            )
        )

    def forget_name(self, tenant: str, device: str, now_s: float) -> None:
        """Take away what leads from a pseudonym to a device; a hash with a secret stays as the tombstone."""
        self._database.change("DELETE FROM pseudonyms WHERE tenant = ? AND device = ?", (tenant, device))
        self._database.change(
            "INSERT OR REPLACE INTO tombstones VALUES (?, ?)", (self._hash(tenant, device), now_s)
        )

    def is_erased(self, tenant: str, device: str) -> bool:
        """Return whether a device of this name was erased."""
        return bool(
            self._database.rows("SELECT 1 FROM tombstones WHERE hash = ?", (self._hash(tenant, device),))
        )

    def lift_tombstone(self, tenant: str, device: str) -> None:
        """Let the name be used again: somebody who may has asked for it by name."""
        self._database.change("DELETE FROM tombstones WHERE hash = ?", (self._hash(tenant, device),))

    def _hash(self, tenant: str, device: str) -> bytes:
        return hmac.digest(self._pepper, f"{tenant}/{device}".encode(), hashlib.sha256)
