"""Claims: what lets a device that nobody knows yet ask for its first certificate."""

from __future__ import annotations

from typing import Final

import msgspec

from services.device.store.database import Database

COLUMNS: Final = "id, tenant, hash, devices, into_group, uses_max, uses, created_s, expires_s, revoked_s"


class ClaimRow(msgspec.Struct, frozen=True, kw_only=True):
    """A claim of a tenant; `hash` is of its token, None for a claim certificate.

    `devices` is a pattern of names (`*` any characters, `?` one), `into_group` where a new device goes, or
    empty.
    """

    id: str
    tenant: str
    hash: bytes | None
    devices: str
    into_group: str
    uses_max: int
    uses: int
    created_s: float
    expires_s: float
    revoked_s: float | None = None


class ClaimTable:
    """Claims by id."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, row: ClaimRow) -> None:
        """Keep a claim."""
        self._database.change(
            f"INSERT INTO claims ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            msgspec.structs.astuple(row),
        )

    def find(self, identifier: str) -> ClaimRow | None:
        """Return a claim, or None."""
        rows = self._rows("id = ?", (identifier,))
        return rows[0] if rows else None

    def page(self, tenant: str, after: str, limit: int) -> list[ClaimRow]:
        """Return up to `limit` claims of a tenant by id, after one."""
        return self._rows("tenant = ? AND id > ? ORDER BY id LIMIT ?", (tenant, after, limit))

    def count(self, tenant: str) -> int:
        """Return how many claims a tenant has."""
        return int(self._database.rows("SELECT count(*) FROM claims WHERE tenant = ?", (tenant,))[0][0])

    def take_use(self, identifier: str) -> bool:
        """Use a claim once; return whether there was a use left."""
        return bool(
            self._database.change(
                "UPDATE claims SET uses = uses + 1 WHERE id = ? AND uses < uses_max AND revoked_s IS NULL",
                (identifier,),
            )
        )

    def give_use_back(self, identifier: str) -> None:
        """Undo a use that led to nothing."""
        self._database.change("UPDATE claims SET uses = uses - 1 WHERE id = ? AND uses > 0", (identifier,))

    def revoke(self, identifier: str, now_s: float) -> None:
        """End a claim."""
        self._database.change(
            "UPDATE claims SET revoked_s = coalesce(revoked_s, ?) WHERE id = ?", (now_s, identifier)
        )

    def forget_expired(self, before_s: float) -> int:
        """Forget claims that ended before a time; return how many."""
        return self._database.change("DELETE FROM claims WHERE expires_s < ?", (before_s,))

    def _rows(self, where: str, values: tuple[object, ...]) -> list[ClaimRow]:
        rows = self._database.rows(f"SELECT {COLUMNS} FROM claims WHERE {where}", values)
        return [ClaimRow(**dict(zip(ClaimRow.__struct_fields__, row, strict=True))) for row in rows]
