"""Bulk imports: a body is kept as a file, answered, and worked through in batches.

- How far an import has come is written after each batch, so that after a restart it goes on from there. A
  batch that was done but not noted is done again, to the same end: a line brings a device to what it says.
- Limits: `bytes_max` a body, `waiting_max` imports that are not finished, `kept_max` finished ones a tenant,
  `FAILURES_MAX` lines that are named (all are counted).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec

from routing.tenancy.registry import RegistryError
from runtime import clock
from services.device.fleet import Fleet
from services.device.import_lines import LINE_BYTES_MAX, BadLine, Form, ImportLine, columns_of, parse
from services.device.store.database import StoreError
from services.device.store.imports import ImportRow, ImportStatus, ImportTable, LineFailure
from services.web.refusal import Refused

BATCH: Final = 200
FAILURES_MAX: Final = 100
READ_DEADLINE_S: Final = 600.0
RETRY_S: Final = 5.0


class ImportLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much may be imported."""

    bytes_max: int
    waiting_max: int
    kept_max: int


class Importer:
    """Takes imports in, and does them one after the other while `run` runs."""

    def __init__(
        self, folder: Path, table: ImportTable, fleet: Fleet, limits: ImportLimits, log: Any
    ) -> None:
        self._folder = folder
        self._table = table
        self._fleet = fleet
        self._limits = limits
        self._log = log
        self._arrived = asyncio.Event()
        self._arriving = 0
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def take(
        self, tenant: str, form: Form, body: AsyncIterator[bytes], *, request_key: str, actor: str
    ) -> ImportRow:
        """Keep a body and return its import; raises `Refused`. It is on disk when this returns."""
        if before := self._table.by_key(tenant, request_key):
            return before
        if len(self._table.open()) + self._arriving >= self._limits.waiting_max:
            raise Refused(503, "too-many-imports", "other imports are waiting; try later", retry_after_s=30)
        identifier = secrets.token_hex(8)
        path = self._path(identifier)
        self._arriving += 1
        try:
            await self._keep(path, body)
            if before := self._table.by_key(tenant, request_key):  # the same request, sent twice at once
                path.unlink()
                return before
            row = ImportRow(
                id=identifier,
                tenant=tenant,
                form=form,
                request_key=request_key,
                actor=actor,
                status=ImportStatus.WAITING,
                created_s=clock.unix_s(),
            )
            self._table.add(row)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            self._arriving -= 1
        self._table.forget_old(tenant, self._limits.kept_max)
        self._arrived.set()
        return row

    async def _keep(self, path: Path, body: AsyncIterator[bytes]) -> None:
        size = 0
        try:
            with path.open("xb") as file:
                async with asyncio.timeout(READ_DEADLINE_S):
                    async for piece in body:
                        size += len(piece)
                        if size > self._limits.bytes_max:
                            raise Refused(
                                413,
                                "body-too-large",
                                f"an import has at most {self._limits.bytes_max} bytes; send several",
                            )
                        file.write(piece)
                file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
        except TimeoutError as error:
            raise Refused(408, "body-too-slow", "the body did not come in time") from error

    async def run(self) -> None:
        """Work through what has come, until cancelled; begins with what a restart has left."""
        self._sweep()
        while True:
            self._arrived.clear()
            for row in self._table.open():
                try:
                    await self._work(row)
                except (StoreError, RegistryError) as error:
                    self._log.error("import_interrupted", id=row.id, why=str(error))
                    await asyncio.sleep(RETRY_S)
            if not self._table.open():
                await self._arrived.wait()

    def _sweep(self) -> None:
        """Remove the files of bodies that never became an import."""
        known = {row.id for row in self._table.open()}
        for path in self._folder.glob("*.import"):
            if path.stem not in known:
                path.unlink(missing_ok=True)

    async def _work(self, row: ImportRow) -> None:
        try:
            with self._path(row.id).open("rb") as file:
                columns = self._columns(row, file)
                file.seek(max(row.position, file.tell()))
                row = msgspec.structs.replace(row, position=file.tell(), status=ImportStatus.RUNNING)
                while True:
                    row = self._batch(row, columns, file)
                    self._table.put(row)
                    if row.status is not ImportStatus.RUNNING:
                        break
                    await asyncio.sleep(0)  # others have a turn
        except (BadLine, OSError) as error:
            reason = str(error) if isinstance(error, BadLine) else "its file cannot be read"
            self._table.put(_failed(row, reason))
        self._log.info("import_ended", id=row.id, done=row.done, failed=row.failed)
        with contextlib.suppress(OSError):
            self._path(row.id).unlink()

    def _columns(self, row: ImportRow, file: Any) -> list[str]:
        return columns_of(file.readline(LINE_BYTES_MAX)) if row.form == "csv" else []

    def _batch(self, row: ImportRow, columns: list[str], file: Any) -> ImportRow:
        """Do some lines, and return how far the import is then."""
        number, failures = row.lines + (1 if row.form == "csv" else 0), list(row.failures)
        read, failed = 0, 0
        taken: list[ImportLine] = []
        fresh: set[str] = set()
        while read < BATCH and (line := _line(file)) is not None:
            read += 1
            if not line.strip():
                continue
            try:
                found = parse(_form(row.form), columns, line)
                self._refuse(row.tenant, found, fresh)
                taken.append(found)
            except (BadLine, Refused) as error:
                failed += 1
                if len(failures) < FAILURES_MAX:
                    failures.append(LineFailure(number + read, str(error)))
        self._fleet.register_many(row.tenant, taken)
        ended = read < BATCH
        return msgspec.structs.replace(
            row,
            status=ImportStatus.FINISHED if ended else ImportStatus.RUNNING,
            finished_s=clock.unix_s() if ended else None,
            position=file.tell(),
            lines=row.lines + read,
            done=row.done + len(taken),
            failed=row.failed + failed,
            failures=failures,
        )

    def _refuse(self, tenant: str, line: ImportLine, fresh: set[str]) -> None:
        """Refuse a line that may not be taken; a device that is new is added to `fresh`."""
        fleet = self._fleet
        if fleet.is_erased(tenant, line.device):
            raise BadLine("a device of this name was erased")
        fleet.refuse_unknown_groups(tenant, line.groups or [])
        if line.device not in fresh and not fleet.is_registered(tenant, line.device):
            fleet.refuse_too_many(tenant, len(fresh) + 1)
            fresh.add(line.device)

    def _path(self, identifier: str) -> Path:
        return self._folder / f"{identifier}.import"


def _form(form: str) -> Form:
    return "csv" if form == "csv" else "ndjson"


def _line(file: Any) -> bytes | None:
    """Return the next line, one byte more than allowed of one that is too long, or None at the end."""
    line: bytes = file.readline(LINE_BYTES_MAX + 1)
    if not line:
        return None
    rest = line
    while len(rest) > LINE_BYTES_MAX and not rest.endswith(b"\n"):
        rest = file.readline(LINE_BYTES_MAX + 1)
    return line


def _failed(row: ImportRow, reason: str) -> ImportRow:
    failures = [*row.failures, LineFailure(1, reason)][-FAILURES_MAX:]
    return msgspec.structs.replace(
        row,
        status=ImportStatus.FAILED,
        finished_s=clock.unix_s(),
        failed=row.failed + 1,
        failures=failures,
    )
