"""Groups of devices."""

from __future__ import annotations

import msgspec

from services.device.store.database import Database


class GroupRow(msgspec.Struct, frozen=True):
    """A group of a tenant."""

    name: str
    description: str
    created_s: float


class GroupTable:
    """Groups and who is in them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, tenant: str, name: str, description: str, now_s: float) -> bool:
        """Make a group; return whether it is new."""
        return bool(
            self._database.change(
                "INSERT OR IGNORE INTO groups VALUES (?, ?, ?, ?)", (tenant, name, description, now_s)
            )
        )

    def count(self, tenant: str) -> int:
        """Return how many groups a tenant has."""
        return int(self._database.rows("SELECT count(*) FROM groups WHERE tenant = ?", (tenant,))[0][0])

    def find(self, tenant: str, name: str) -> GroupRow | None:
        """Return a group, or None."""
        rows = self._page("name = ?2", tenant, name, 1)
        return rows[0] if rows else None

    def page(self, tenant: str, after: str, limit: int) -> list[GroupRow]:
        """Return up to `limit` groups by name, after one."""
        return self._page("name > ?2", tenant, after, limit)

    def _page(self, where: str, tenant: str, name: str, limit: int) -> list[GroupRow]:
        return [
            GroupRow(*row)
            for row in self._database.rows(
                "SELECT name, description, created_s FROM groups "
                f"WHERE tenant = ?1 AND {where} ORDER BY name LIMIT ?3",
                (tenant, name, limit),
            )
        ]

    def remove(self, tenant: str, name: str) -> bool:
        """Take a group away, not its devices; return whether it was there."""
        with self._database.transaction():
            self._database.change("DELETE FROM members WHERE tenant = ? AND name = ?", (tenant, name))
            return bool(
                self._database.change("DELETE FROM groups WHERE tenant = ? AND name = ?", (tenant, name))
            )

    def join(self, tenant: str, name: str, device: str) -> bool:
        """Put a device into a group; return whether it is new there."""
        return bool(
            self._database.change("INSERT OR IGNORE INTO members VALUES (?, ?, ?)", (tenant, name, device))
        )

    def leave(self, tenant: str, name: str, device: str) -> bool:
        """Take a device out of a group; return whether it was there."""
        return bool(
            self._database.change(
                "DELETE FROM members WHERE tenant = ? AND name = ? AND device = ?", (tenant, name, device)
            )
        )

    def leave_all(self, tenant: str, device: str) -> None:
        """Take a device out of every group."""
        self._database.change("DELETE FROM members WHERE tenant = ? AND device = ?", (tenant, device))

    def members(self, tenant: str, name: str, after: str, limit: int) -> list[str]:
        """Return up to `limit` devices of a group by name, after one."""
        rows = self._database.rows(
            "SELECT device FROM members WHERE tenant = ? AND name = ? AND device > ? ORDER BY device LIMIT ?",
            (tenant, name, after, limit),
        )
        return [row[0] for row in rows]

    def of_device(self, tenant: str, device: str) -> list[str]:
        """Return the groups that a device is in."""
        rows = self._database.rows(
            "SELECT name FROM members WHERE tenant = ? AND device = ? ORDER BY name", (tenant, device)
        )
        return [row[0] for row in rows]
