"""Bulk imports: how far each has come, so that one goes on where it was after a restart."""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from services.device.store.database import Database

COLUMNS: Final = (
    "id, tenant, form, request_key, actor, status, created_s, finished_s, position, lines, done, failed, "
    "failures"
)


class ImportStatus(enum.Enum):
    """Where an import is."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"


class LineFailure(msgspec.Struct, frozen=True):
    """A line that could not be taken, by its number from 1, and why."""

    line: int
    reason: str


class ImportRow(msgspec.Struct, frozen=True, kw_only=True):
    """An import. `position` is the byte up to which its file has been worked through."""

    id: str
    tenant: str
    form: str
    request_key: str
    actor: str
    status: ImportStatus
    created_s: float
    finished_s: float | None = None
    position: int = 0
    lines: int = 0
    done: int = 0
    failed: int = 0
    failures: list[LineFailure] = msgspec.field(default_factory=list)

    @property
    def is_open(self) -> bool:
        """Whether there is work left."""
        return self.status in {ImportStatus.WAITING, ImportStatus.RUNNING}


class ImportTable:
    """Imports by id."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, row: ImportRow) -> None:
        """Keep a new import."""
        self._database.change(
            f"INSERT INTO imports ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", _values(row)
        )

    def put(self, row: ImportRow) -> None:
        """Keep how far an import has come."""
        self._database.change(
            "UPDATE imports SET status = ?, finished_s = ?, position = ?, lines = ?, done = ?, failed = ?, "
            "failures = ? WHERE id = ?",
            (row.status.value, *_values(row)[7:], row.id),
        )

    def find(self, tenant: str, identifier: str) -> ImportRow | None:
        """Return an import of a tenant, or None."""
        rows = self._rows("tenant = ? AND id = ?", (tenant, identifier))
        return rows[0] if rows else None

    def by_key(self, tenant: str, request_key: str) -> ImportRow | None:
        """Return the import that a request with this Idempotency-Key began, or None."""
        rows = self._rows("tenant = ? AND request_key = ?", (tenant, request_key)) if request_key else []
        return rows[0] if rows else None

    def open(self) -> list[ImportRow]:
        """Return the imports that are not finished, the oldest first."""
        return self._rows("status IN ('waiting', 'running') ORDER BY number", ())

    def page(self, tenant: str, before: str, limit: int) -> list[ImportRow]:
        """Return up to `limit` imports of a tenant, the newest first, before one."""
        return self._rows(
            "tenant = ?1 AND (?2 = '' OR number < (SELECT number FROM imports WHERE id = ?2 AND "
            "tenant = ?1)) "
            "ORDER BY number DESC LIMIT ?3",
            (tenant, before, limit),
        )

    def forget_old(self, tenant: str, kept: int) -> None:
        """Forget all but the last `kept` imports of a tenant that are not open."""
        self._database.change(
            "DELETE FROM imports WHERE tenant = ?1 AND status NOT IN ('waiting', 'running') AND "
            "number NOT IN "
            "(SELECT number FROM imports WHERE tenant = ?1 ORDER BY number DESC LIMIT ?2)",
            (tenant, kept),
        )

    def _rows(self, where: str, values: tuple[object, ...]) -> list[ImportRow]:
        rows = self._database.rows(f"SELECT {COLUMNS} FROM imports WHERE {where}", values)
        return [_row(row) for row in rows]


def _values(row: ImportRow) -> tuple[object, ...]:
    values = msgspec.structs.astuple(row)
    return (*values[:5], row.status.value, *values[6:12], msgspec.json.encode(row.failures).decode())


def _row(values: tuple[object, ...]) -> ImportRow:
    found = dict(zip(ImportRow.__struct_fields__, values, strict=True))
    return msgspec.convert({**found, "failures": msgspec.json.decode(str(found["failures"]))}, ImportRow)
