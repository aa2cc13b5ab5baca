"""Tenants, devices and API keys in SQLite; every process of a node opens the one file.

Point look-ups take microseconds and run on the event loop. `changed()` tells cheaply whether another
process wrote, so that suspensions and new plans are seen within a poll. When a key was last used stands in
a file of its own beside, since it changes nothing that anybody must look at: it is written at most once in
`USE_EVERY_S` for a key, and for many keys at once.
"""

from __future__ import annotations

import enum
import hashlib
import hmac
import math
import secrets
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from routing.tenancy.identity import Credential, Identity, Kind
from routing.tenancy.principal import SCOPE, SCOPES_MAX

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
CREATE TABLE IF NOT EXISTS key_use.last_used (id TEXT PRIMARY KEY, last_used_s REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS suspended_devices ON devices (tenant) WHERE status = 'suspended';
"""
KEY_COLUMNS: Final = {
    "scopes": "TEXT NOT NULL DEFAULT ''",
    "plan": "TEXT NOT NULL DEFAULT ''",
    "previous_hash": "BLOB",
    "previous_until_s": "REAL",
}
"""What keys have had since 0.2, so that an older file lacks it."""
KEY: Final = (
    "id, tenant, name, kind, status, created_s, expires_s, scopes, plan, previous_until_s, "
    "(SELECT last_used_s FROM key_use.last_used AS used WHERE used.id = api_keys.id) AS last_used_s"
)
USE_EVERY_S: Final = 60.0
USED_MAX: Final = 10_000
"""Keys whose use waits to be written; that of more is not noted until those are."""
PLANS_MAX: Final = 100_000
"""Tenants whose plans are remembered."""
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
    """An API key without its secret, of which only a hash is kept.

    `previous_until_s` is until when the secret before the last rotation is good. `plan` is a usage plan of
    the key's own, or empty.
    """

    id: str
    tenant: str
    name: str
    kind: str
    status: str
    created_s: float
    expires_s: float | None
    scopes: tuple[str, ...] = ()
    plan: str = ""
    previous_until_s: float | None = None
    last_used_s: float | None = None


class Registry:
    """One process's view of the registry file; raises `RegistryError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            for pragma in ("busy_timeout = 5000", "journal_mode = WAL", "synchronous = FULL"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._connection.execute("ATTACH ? AS key_use", (str(use_path(path)),))
            self._connection.execute("PRAGMA key_use.journal_mode = WAL")
            self._connection.execute("PRAGMA key_use.synchronous = NORMAL")
            self._connection.executescript(SCHEMA)
            self._migrate()
        except (OSError, sqlite3.Error) as error:
            raise RegistryError(f"cannot open {path}: {error}") from error
        self._version = self._data_version()
        self.revision = 0
        """Another number once this process may have known something that is no longer so; see `changed`."""
        self._plans: dict[str, str] = {}
        """The plans of tenants, as far as they were asked for in this revision."""
        self._suspends: bool | None = None
        """Whether anybody is suspended; None until somebody asks."""
        self._used_s: dict[str, float] = {}
        """When keys were used, as far as that is not written yet."""
        self._noted_s: dict[str, float] = {}
        """The use that was written last, as far as this process knows."""

    def _migrate(self) -> None:
        """Give an older file the columns that keys have by now; several processes may try at once."""
        connection = self._connection
        connection.execute("BEGIN IMMEDIATE")
        try:
            there = {row[1] for row in connection.execute("PRAGMA main.table_info(api_keys)")}
            for name, kind in KEY_COLUMNS.items():
                if name not in there:
                    connection.execute(f"ALTER TABLE api_keys ADD COLUMN {name} {kind}")
        finally:
            connection.execute("COMMIT")

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise RegistryError(f"cannot read {self._path}: {error}") from error

    def _change(self, sql: str, values: Sequence[Any]) -> int:
        """Change rows in a transaction of its own; return how many."""
        self.forget()
        try:
            return self._connection.execute(sql, values).rowcount
        except sqlite3.Error as error:
            raise RegistryError(f"cannot write {self._path}: {error}") from error

    def _data_version(self) -> int:
        return int(self._rows("PRAGMA main.data_version")[0][0])

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._path

    def changed(self) -> bool:
        """Return whether another process has written since the last call."""
        version = self._data_version()
        changed, self._version = version != self._version, version
        if changed:
            self.forget()
        return changed

    def forget(self) -> None:
        """Read everything anew: what is remembered may no longer be so."""
        self.revision += 1
        self._suspends = None
        self._plans.clear()

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
        """Return the name of a tenant's plan; another process's change counts from the next `changed`."""
        plan = self._plans.get(tenant)
        if plan is None:
            rows = self._rows("SELECT plan FROM tenants WHERE name = ?", (tenant,))
            plan = str(rows[0][0]) if rows else DEFAULT_PLAN
            if len(self._plans) < PLANS_MAX:
                self._plans[tenant] = plan
        return plan

    # API keys.

    def issue_key(
        self,
        tenant: str,
        name: str,
        kind: Kind,
        now_s: float,
        expires_s: float | None,
        *,
        scopes: Iterable[str] = (),
        plan: str = "",
    ) -> tuple[ApiKey, str]:
        """Make a key; return it with its secret form `hw_<id>_<secret>`, which is not kept."""
        identifier, secret = secrets.token_hex(6), secrets.token_hex(32)
        granted = tuple(sorted(set(scopes)))
        if wrong := [scope for scope in granted if SCOPE.fullmatch(scope) is None]:
            raise RegistryError(f"{wrong[0]!r} is not a scope; one is written resource:action")
        if len(granted) > SCOPES_MAX:
            raise RegistryError(f"a key has at most {SCOPES_MAX} scopes")
        self._change(
            "INSERT INTO api_keys (id, hash, tenant, name, kind, status, created_s, expires_s, scopes, plan) "
            "VALUES (?, ?, ?, ?, ?, 'active', ?, ?, ?, ?)",
            (identifier, _hash(secret), tenant, name, kind.value, now_s, expires_s, " ".join(granted), plan),
        )
        key = ApiKey(
            identifier, tenant, name, kind.value, Status.ACTIVE.value, now_s, expires_s, granted, plan
        )
        return key, f"hw_{identifier}_{secret}"

    def rotate_key(self, identifier: str, now_s: float, overlap_s: float) -> str:
        """Give a key a new secret, and return it; the one before stays good for `overlap_s`.

        At a second rotation within that time the oldest secret ends at once.
        """
        key = self.key(identifier)
        if key is None:
            raise RegistryError(f"there is no key {identifier}")
        if key.status != Status.ACTIVE.value:
            raise RegistryError(f"{identifier} is revoked; add a new key")
        if key.expires_s is not None and key.expires_s <= now_s:
            raise RegistryError(
                f"{identifier} has ended, and a new secret would not change that; add a new key"
            )
        secret = secrets.token_hex(32)
        self._change(
            "UPDATE api_keys SET previous_hash = hash, previous_until_s = ?, hash = ? WHERE id = ?",
            (now_s + overlap_s, _hash(secret), identifier),
        )
        return f"hw_{identifier}_{secret}"

    def key_of(self, presented: str, now_s: float) -> ApiKey | None:
        """Return the key that is presented, or None when it is wrong, revoked or expired.

        Its `expires_s` is then that of the secret that was shown, which after a rotation may be sooner.
        """
        if not presented.isascii():
            return None
        prefix, _, rest = presented.partition("_")
        identifier, _, secret = rest.partition("_")
        rows = self._rows(f"SELECT hash, previous_hash, {KEY} FROM api_keys WHERE id = ?", (identifier,))
        stored, before = (rows[0][0], rows[0][1] or bytes(32)) if rows else (bytes(32), bytes(32))
        shown = _hash(secret)
        is_current, is_previous = hmac.compare_digest(stored, shown), hmac.compare_digest(before, shown)
        if prefix != "hw" or not rows or not (is_current or is_previous):
            return None
        key = _key(rows[0][2:])
        if not is_current:
            ends = [until for until in (key.previous_until_s, key.expires_s) if until is not None]
            key = msgspec.structs.replace(key, expires_s=min(ends))
        if key.status != Status.ACTIVE.value or (key.expires_s is not None and key.expires_s <= now_s):
            return None
        self.note_use(identifier, now_s)
        return key

    def identity_of_key(self, presented: str, now_s: float) -> Identity | None:
        """Return whom a presented key names, or None when it is wrong, revoked or expired."""
        key = self.key_of(presented, now_s)
        if key is None:
            return None
        return Identity(
            tenant=key.tenant,
            name=key.name,
            kind=Kind(key.kind),
            credential=Credential.API_KEY,
            fingerprint=key.id,
            expires_s=key.expires_s,
        )

    def key(self, identifier: str) -> ApiKey | None:
        """Return a key by its id."""
        rows = self._rows(f"SELECT {KEY} FROM api_keys WHERE id = ?", (identifier,))
        return _key(rows[0]) if rows else None

    def keys(self, tenant: str | None) -> list[ApiKey]:
        """Return the keys of one tenant or of all."""
        sql = f"SELECT {KEY} FROM api_keys WHERE ?1 IS NULL OR tenant = ?1 ORDER BY tenant, created_s"
        return [_key(row) for row in self._rows(sql, (tenant,))]

    def revoke_key(self, identifier: str) -> None:
        """End a key, with every secret of it."""
        if not self._change("UPDATE api_keys SET status = 'suspended' WHERE id = ?", (identifier,)):
            raise RegistryError(f"there is no key {identifier}")

    def key_is_active(self, identifier: str) -> bool:
        """Return whether a key may still be used."""
        rows = self._rows("SELECT status FROM api_keys WHERE id = ?", (identifier,))
        return bool(rows) and rows[0][0] == Status.ACTIVE.value

    def note_use(self, identifier: str, now_s: float) -> None:
        """Note that a key was used, by somebody who remembers what `key_of` said of it."""
        if now_s - self._noted_s.get(identifier, -math.inf) < USE_EVERY_S:
            return
        if identifier in self._used_s or len(self._used_s) < USED_MAX:
            self._used_s[identifier] = now_s

    def flush_use(self) -> int:
        """Write when keys were last used; return for how many. Call it every few seconds."""
        used, self._used_s = self._used_s, {}
        if not used:
            return 0
        if len(self._noted_s) > USED_MAX:
            self._noted_s.clear()
        self._noted_s.update(used)
        try:
            self._connection.execute("BEGIN")
            self._connection.executemany(
                "INSERT INTO key_use.last_used VALUES (?, ?) ON CONFLICT (id) DO UPDATE "
                "SET last_used_s = max(last_used_s, excluded.last_used_s)",
                used.items(),
            )
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise RegistryError(f"cannot write {use_path(self._path)}: {error}") from error
        return len(used)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def use_path(path: Path) -> Path:
    """Return where it is written when the keys of a registry were last used."""
    return path.with_name(f"{path.stem}-use{path.suffix}")


def _key(row: Sequence[Any]) -> ApiKey:
    identifier, tenant, name, kind, status, created_s, expires_s, scopes, plan, until_s, used_s = row
    return ApiKey(
        identifier,
        tenant,
        name,
        kind,
        status,
        created_s,
        expires_s,
        tuple(scopes.split()),
        plan,
        until_s,
        used_s,
    )


def _hash(secret: str) -> bytes:
    """Hash a key's secret: 256 random bits need no slow hash, since nobody can guess them."""
    return hashlib.sha256(secret.encode()).digest()
