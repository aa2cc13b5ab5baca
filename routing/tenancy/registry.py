"""Tenants, devices and API keys in SQLite; every process of a node opens the one file.

Point look-ups take microseconds and run on the event loop. `changed()` tells cheaply whether another
process wrote, so that suspensions and new plans are seen within a poll.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from routing.tenancy.identity import Credential, Identity, Kind

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS tenants (
    name TEXT PRIMARY KEY, plan TEXT NOT NULL, status TEXT NOT NULL, created_s REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS devices (
    tenant TEXT NOT NULL, name TEXT NOT NULL, status TEXT NOT NULL, created_s REAL NOT NULL,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS api_keys (
    id TEXT PRIMARY KEY, hash BLOB NOT NULL, tenant TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
    status TEXT NOT NULL, created_s REAL NOT NULL, expires_s REAL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS suspended_devices ON devices (tenant) WHERE status = 'suspended';
"""
ANYBODY_SUSPENDED: Final = """
SELECT EXISTS (SELECT 1 FROM tenants WHERE status = 'suspended')
    OR EXISTS (SELECT 1 FROM devices WHERE status = 'suspended')
"""
DEFAULT_PLAN: Final = "default"


class Status(enum.Enum):
    """Whether a tenant, a device or a key may be used."""

    ACTIVE = "active"
    SUSPENDED = "suspended"


class Verdict(enum.Enum):
    """What the registry says of an identity."""

    ADMITTED = "admitted"
    NOT_REGISTERED = "not_registered"
    SUSPENDED = "suspended"


class RegistryError(Exception):
    """What was asked cannot be done; the text says why."""


class Tenant(msgspec.Struct, frozen=True):
    """A customer of the platform."""

    name: str
    plan: str
    status: str
    created_s: float


class Device(msgspec.Struct, frozen=True):
    """A device or gateway of a tenant."""

    tenant: str
    name: str
    status: str
    created_s: float


class ApiKey(msgspec.Struct, frozen=True):
    """An API key without its secret, of which only a hash is kept."""

    id: str
    tenant: str
    name: str
    kind: str
    status: str
    created_s: float
    expires_s: float | None


class Registry:
    """One process's view of the registry file; raises `RegistryError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for pragma in ("busy_timeout = 5000", "journal_mode = WAL", "synchronous = FULL"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._connection.executescript(SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise RegistryError(f"cannot open {path}: {error}") from error
        self._version = self._data_version()
        self._suspends: bool | None = None
        """Whether anybody is suspended; None until somebody asks."""

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise RegistryError(f"cannot read {self._path}: {error}") from error

    def _change(self, sql: str, values: Sequence[Any]) -> int:
        """Change rows in a transaction of its own; return how many."""
        self._suspends = None
        try:
            return self._connection.execute(sql, values).rowcount
        except sqlite3.Error as error:
            raise RegistryError(f"cannot write {self._path}: {error}") from error

    def _data_version(self) -> int:
        return int(self._rows("PRAGMA data_version")[0][0])

    def changed(self) -> bool:
        """Return whether another process has written since the last call."""
        version = self._data_version()
        changed, self._version = version != self._version, version
        if changed:
            self._suspends = None
        return changed

    # Tenants and devices.

    def add_tenant(self, name: str, plan: str, now_s: float) -> None:
        """Add a tenant, or put an existing one on `plan`."""
        self._change(
            "INSERT INTO tenants VALUES (?, ?, 'active', ?) "
            "ON CONFLICT (name) DO UPDATE SET plan = excluded.plan",
            (name, plan, now_s),
        )

    def tenants(self) -> list[Tenant]:
        """Return all tenants by name."""
        return [Tenant(*row) for row in self._rows("SELECT * FROM tenants ORDER BY name")]

    def set_tenant_status(self, name: str, status: Status, now_s: float) -> None:
        """Suspend or resume a tenant; one that was never added is added with that status."""
        self._change(
            "INSERT INTO tenants VALUES (?, ?, ?, ?) "
            "ON CONFLICT (name) DO UPDATE SET status = excluded.status",
            (name, DEFAULT_PLAN, status.value, now_s),
        )

    def add_devices(self, tenant: str, names: Iterable[str], now_s: float) -> int:
        """Add devices of a tenant in one transaction; return how many are new."""
        if not self._rows("SELECT 1 FROM tenants WHERE name = ?", (tenant,)):
            raise RegistryError(f"there is no tenant {tenant}; run: headworks tenants add {tenant}")
        connection = self._connection
        before = connection.total_changes
        rows = ((tenant, name, now_s) for name in names)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT OR IGNORE INTO devices VALUES (?, ?, 'active', ?)", rows)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise RegistryError(f"cannot write {self._path}: {error}") from error
        return connection.total_changes - before

    def devices(self, tenant: str | None) -> list[Device]:
        """Return the devices of one tenant or of all."""
        return [
            Device(*row)
            for row in self._rows(
                "SELECT * FROM devices WHERE ?1 IS NULL OR tenant = ?1 ORDER BY tenant, name", (tenant,)
            )
        ]

    def tenant(self, name: str) -> Tenant | None:
        """Return a tenant, or None."""
        rows = self._rows("SELECT * FROM tenants WHERE name = ?", (name,))
        return Tenant(*rows[0]) if rows else None

    def tenants_after(self, name: str, limit: int) -> list[Tenant]:
        """Return up to `limit` tenants by name, after one."""
        rows = self._rows("SELECT * FROM tenants WHERE name > ? ORDER BY name LIMIT ?", (name, limit))
        return [Tenant(*row) for row in rows]

    def device(self, tenant: str, name: str) -> Device | None:
        """Return a device, or None."""
        rows = self._rows("SELECT * FROM devices WHERE tenant = ? AND name = ?", (tenant, name))
        return Device(*rows[0]) if rows else None

    def devices_after(self, tenant: str, name: str, limit: int) -> list[Device]:
        """Return up to `limit` devices of a tenant by name, after one."""
        rows = self._rows(
            "SELECT * FROM devices WHERE tenant = ? AND name > ? ORDER BY name LIMIT ?", (tenant, name, limit)
        )
        return [Device(*row) for row in rows]

    def device_count(self, tenant: str) -> int:
        """Return how many devices a tenant has; this reads them all."""
        return int(self._rows("SELECT count(*) FROM devices WHERE tenant = ?", (tenant,))[0][0])

    def remove_device(self, tenant: str, name: str) -> bool:
        """Take a device away, and end its keys; return whether it was there."""
        self._change(
            "UPDATE api_keys SET status = 'suspended' WHERE tenant = ? AND name = ? AND kind = 'device'",
            (tenant, name),
        )
        return bool(self._change("DELETE FROM devices WHERE tenant = ? AND name = ?", (tenant, name)))

    def set_device_status(self, tenant: str, name: str, status: Status, now_s: float) -> None:
        """Suspend or resume a device; one that was never added is added with that status."""
        self._change(
            "INSERT INTO devices VALUES (?, ?, ?, ?) "
            "ON CONFLICT (tenant, name) DO UPDATE SET status = excluded.status",
            (tenant, name, status.value, now_s),
        )

    def judge(self, tenant: str, device: str, *, registered_only: bool) -> Verdict:
        """Say whether `device` of `tenant` may be served. Missing means closed when `registered_only`.

        While nobody is suspended, what another process writes counts from the next call of `changed`.
        """
        if self._suspends is None:
            self._suspends = bool(self._rows(ANYBODY_SUSPENDED)[0][0])
        if not (self._suspends or registered_only):
            return Verdict.ADMITTED
        [found] = self._rows(
            "SELECT (SELECT status FROM tenants WHERE name = ?1), "
            "(SELECT status FROM devices WHERE tenant = ?1 AND name = ?2)",
            (tenant, device),
        )
        if Status.SUSPENDED.value in found:
            return Verdict.SUSPENDED
        if registered_only and None in found:
            return Verdict.NOT_REGISTERED
        return Verdict.ADMITTED

    def plan_of(self, tenant: str) -> str:
        """Return the name of a tenant's plan."""
        rows = self._rows("SELECT plan FROM tenants WHERE name = ?", (tenant,))
        return str(rows[0][0]) if rows else DEFAULT_PLAN

    # API keys.

    def issue_key(
        self, tenant: str, name: str, kind: Kind, now_s: float, expires_s: float | None
    ) -> tuple[ApiKey, str]:
        """Make a key; return it with its secret form `hw_<id>_<secret>`, which is not kept."""
        identifier, secret = secrets.token_hex(6), secrets.token_hex(32)
        self._change(
            "INSERT INTO api_keys VALUES (?, ?, ?, ?, ?, 'active', ?, ?)",
            (identifier, _hash(secret), tenant, name, kind.value, now_s, expires_s),
        )
        key = ApiKey(identifier, tenant, name, kind.value, Status.ACTIVE.value, now_s, expires_s)
        return key, f"hw_{identifier}_{secret}"

    def identity_of_key(self, presented: str, now_s: float) -> Identity | None:
        """Return whom a presented key names, or None when it is wrong, revoked or expired."""
        if not presented.isascii():
            return None
        prefix, _, rest = presented.partition("_")
        identifier, _, secret = rest.partition("_")
        rows = self._rows(
            "SELECT hash, tenant, name, kind, status, expires_s FROM api_keys WHERE id = ?", (identifier,)
        )
        row = rows[0] if rows else None
        stored = row[0] if row is not None else bytes(32)
        right = hmac.compare_digest(stored, _hash(secret))
        if prefix != "hw" or row is None or not right or row[4] != Status.ACTIVE.value:
            return None
        if row[5] is not None and row[5] <= now_s:
            return None
        return Identity(
            tenant=row[1],
            name=row[2],
            kind=Kind(row[3]),
            credential=Credential.API_KEY,
            fingerprint=identifier,
            expires_s=row[5],
        )

    def keys(self, tenant: str | None) -> list[ApiKey]:
        """Return the keys of one tenant or of all."""
        return [
            ApiKey(*row)
            for row in self._rows(
                "SELECT id, tenant, name, kind, status, created_s, expires_s FROM api_keys "
                "WHERE ?1 IS NULL OR tenant = ?1 ORDER BY tenant, created_s",
                (tenant,),
            )
        ]

    def revoke_key(self, identifier: str) -> None:
        """End a key."""
        if not self._change("UPDATE api_keys SET status = 'suspended' WHERE id = ?", (identifier,)):
            raise RegistryError(f"there is no key {identifier}")

    def key_is_active(self, identifier: str) -> bool:
        """Return whether a key may still be used."""
        rows = self._rows("SELECT status FROM api_keys WHERE id = ?", (identifier,))
        return bool(rows) and rows[0][0] == Status.ACTIVE.value

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def _hash(secret: str) -> bytes:
    """Hash a key's secret: 256 random bits need no slow hash, since nobody can guess them."""
    return hashlib.sha256(secret.encode()).digest()
