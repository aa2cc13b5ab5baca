"""Certificates that the service has had issued, and when each is to be revoked.

To revoke is two steps, so that a crash loses none: what is due is written down first, and counts as revoked
only when the issuer has said so.
"""

from __future__ import annotations

from typing import Final

import msgspec

from services.device.store.database import Database

COLUMNS: Final = (
    "serial, tenant, kind, name, fingerprint, issued_s, not_after_s, revoke_at_s, revoked_s"  # as in the row
)


class CertificateRow(msgspec.Struct, frozen=True, kw_only=True):
    """A certificate of a device or of a claim (`kind`), by the hex of its serial number.

    `fingerprint` is the SHA-256 of the certificate in hex.
    """

    serial: str
    tenant: str
    kind: str
    name: str
    fingerprint: str
    issued_s: float
    not_after_s: float
    revoke_at_s: float | None = None
    revoked_s: float | None = None

    def is_good(self, now_s: float) -> bool:
        """Return whether somebody could still come in with it."""
        return self.revoked_s is None and now_s < self.not_after_s


class CertificateTable:
    """Certificates by serial number."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, row: CertificateRow) -> None:
        """Keep a certificate."""
        self._database.change(
            f"INSERT INTO certificates ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            msgspec.structs.astuple(row),
        )

    def find(self, tenant: str, kind: str, name: str, serial: str) -> CertificateRow | None:
        """Return a certificate of somebody, or None."""
        rows = self._rows("serial = ? AND tenant = ? AND kind = ? AND name = ?", (serial, tenant, kind, name))
        return rows[0] if rows else None

    def page(self, tenant: str, kind: str, name: str, after: str, limit: int) -> list[CertificateRow]:
        """Return up to `limit` certificates of somebody by serial number, after one."""
        return self._rows(
            "tenant = ? AND kind = ? AND name = ? AND serial > ? ORDER BY serial LIMIT ?",
            (tenant, kind, name, after, limit),
        )

    def good(self, tenant: str, kind: str, name: str, now_s: float) -> list[CertificateRow]:
        """Return the certificates with which somebody could come in."""
        return self._rows(
            "tenant = ? AND kind = ? AND name = ? AND revoked_s IS NULL AND not_after_s > ?",
            (tenant, kind, name, now_s),
        )

    def revoke_at(self, serial: str, when_s: float) -> None:
        """Write down when a certificate is to be revoked, unless it is to be so sooner."""
        self._database.change(
            "UPDATE certificates SET revoke_at_s = min(coalesce(revoke_at_s, ?2), ?2) WHERE serial = ?1",
            (serial, when_s),
        )

    def due(self, now_s: float, limit: int) -> list[CertificateRow]:
        """Return certificates that are to be revoked by now."""
        return self._rows(
            "revoke_at_s IS NOT NULL AND revoked_s IS NULL AND revoke_at_s <= ? ORDER BY revoke_at_s LIMIT ?",
            (now_s, limit),
        )

    def revoked(self, serials: list[str], now_s: float) -> None:
        """Note that certificates are revoked for good."""
        self._database.change(
            "UPDATE certificates SET revoked_s = ? WHERE serial IN (SELECT value FROM json_each(?))",
            (now_s, msgspec.json.encode(serials).decode()),
        )

    def forget_expired(self, before_s: float) -> int:
        """Forget certificates that ended before a time; return how many."""
        return self._database.change("DELETE FROM certificates WHERE not_after_s < ?", (before_s,))

    def remove(self, tenant: str, kind: str, name: str) -> None:
        """Forget somebody's certificates; they must be revoked by now."""
        self._database.change(
            "DELETE FROM certificates WHERE tenant = ? AND kind = ? AND name = ?", (tenant, kind, name)
        )

    def _rows(self, where: str, values: tuple[object, ...]) -> list[CertificateRow]:
        rows = self._database.rows(f"SELECT {COLUMNS} FROM certificates WHERE {where}", values)
        names = CertificateRow.__struct_fields__
        return [CertificateRow(**dict(zip(names, row, strict=True))) for row in rows]
