"""Shadows: what a device should be like, and what it says it is like, each with a version."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from services.device.store.database import Database

Side = Literal["desired", "reported"]


class SideRow(msgspec.Struct, frozen=True):
    """One side of a shadow. Version 0 is of one that was never written."""

    state: dict[str, Any] = msgspec.field(default_factory=dict)
    version: int = 0
    updated_s: float | None = None


class ShadowRow(msgspec.Struct, frozen=True):
    """Both sides."""

    desired: SideRow = SideRow()
    reported: SideRow = SideRow()

    def side(self, side: Side) -> SideRow:
        """Return one of them."""
        return self.desired if side == "desired" else self.reported


class ShadowTable:
    """Shadows by device."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, tenant: str, device: str) -> ShadowRow:
        """Return the shadow of a device, which is empty when nobody has written to it."""
        rows = self._database.rows(
            "SELECT desired, desired_version, desired_s, reported, reported_version, reported_s FROM shadows "
            "WHERE tenant = ? AND device = ?",
            (tenant, device),
        )
        if not rows:
            return ShadowRow()
        row = rows[0]
        return ShadowRow(
            SideRow(msgspec.json.decode(row[0]), row[1], row[2]),
            SideRow(msgspec.json.decode(row[3]), row[4], row[5]),
        )

    def put(self, tenant: str, device: str, side: Side, after: SideRow) -> None:
        """Keep one side."""
        assert side in {"desired", "reported"}
        self._database.change(
            "INSERT OR IGNORE INTO shadows VALUES (?, ?, '{}', 0, NULL, '{}', 0, NULL)", (tenant, device)
        )
        self._database.change(
            f"UPDATE shadows SET {side} = ?, {side}_version = ?, {side}_s = ? "
            "WHERE tenant = ? AND device = ?",
            (msgspec.json.encode(after.state).decode(), after.version, after.updated_s, tenant, device),
        )

    def remove(self, tenant: str, device: str) -> None:
        """Forget a shadow."""
        self._database.change("DELETE FROM shadows WHERE tenant = ? AND device = ?", (tenant, device))
