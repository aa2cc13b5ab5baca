"""Operations on bulk imports."""

from __future__ import annotations

from typing import Final

from services.device.import_lines import Form
from services.device.resources import Import, at, at_or_none
from services.device.service import DeviceService
from services.device.store.imports import ImportRow
from services.web.operations import HEADER_CHARACTERS_MAX, Asked, NoBody, NoQuery, Operations, Reply, Streamed
from services.web.page import Page, PageQuery, key_of, page_of
from services.web.refusal import invalid, not_found

ALL: Final = "/v1/tenants/{tenant}/imports"
FORMS: Final[dict[str, Form]] = {"application/x-ndjson": "ndjson", "text/csv": "csv"}
PATTERN: Final = r"[0-9a-f]{16}"


def register(operations: Operations[DeviceService]) -> None:
    """Register them."""
    operations.add(
        "POST",
        ALL,
        add,
        name="add-import",
        summary="Import devices from NDJSON or CSV",
        description=(
            "Answers when the body is on disk; the work goes on after that, through restarts too. "
            "Each line brings a "
            "device to what it says, so that the same import twice is the same as once."
        ),
        tag="imports",
        scope="imports:write",
        body=Streamed,
        body_types=tuple(FORMS),
        answers={202: Import},
        refusals={404: "There is no such tenant.", 503: "Too many imports are waiting."},
        headers={"Idempotency-Key": "The same again is the same import."},
    )
    operations.add(
        "GET",
        ALL,
        find_all,
        name="list-imports",
        summary="List imports, the newest first",
        tag="imports",
        scope="imports:write",
        query=PageQuery,
        answers={200: Page[Import]},
    )
    operations.add(
        "GET",
        f"{ALL}/{{import_id}}",
        find,
        name="get-import",
        summary="Show how far an import is, and which lines failed",
        tag="imports",
        scope="imports:write",
        answers={200: Import},
        refusals={404: "There is none."},
    )


async def add(service: DeviceService, asked: Asked[NoQuery, Streamed]) -> Reply:
    """Answer add-import."""
    tenant, request = asked.path["tenant"], asked.request
    service.fleet.refuse_unless_tenant(tenant)
    request_key = request.headers.get("Idempotency-Key", "")
    if len(request_key) > HEADER_CHARACTERS_MAX:
        raise invalid(f"Idempotency-Key: at most {HEADER_CHARACTERS_MAX} characters")
    row = await service.importer.take(
        tenant,
        FORMS[request.content_type],
        request.content.iter_any(),
        request_key=request_key,
        actor=asked.caller.name,
    )
    service.journal.did(asked.caller, tenant, "import.add", subject=f"import/{row.id}")
    return Reply(_described(row), 202, {"Location": f"/v1/tenants/{tenant}/imports/{row.id}"})


async def find_all(service: DeviceService, asked: Asked[PageQuery, NoBody]) -> Reply:
    """Answer list-imports."""
    before = key_of(asked.query.cursor, str) or ""
    rows = service.imports.page(asked.path["tenant"], before, asked.query.limit + 1)
    return Reply(page_of([_described(row) for row in rows], asked.query.limit, lambda each: each.id))


async def find(service: DeviceService, asked: Asked[NoQuery, NoBody]) -> Reply:
    """Answer get-import."""
    row = service.imports.find(asked.path["tenant"], asked.path["import_id"])
    if row is None:
        raise not_found(f"import {asked.path['import_id']}")
    return Reply(_described(row))


def _described(row: ImportRow) -> Import:
    return Import(
        id=row.id,
        status=row.status.value,
        created_at=at(row.created_s),
        finished_at=at_or_none(row.finished_s),
        lines=row.lines,
        done=row.done,
        failed=row.failed,
        failures=row.failures,
    )
