"""Version 2: the values of a device by metric and time, as they are or down-sampled; pages and streams."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, Generic, TypeVar

from aiohttp import web

from runtime import clock
from services.data import selection as sql
from services.data.formats import ARROW, JSON, NDJSON, ArrowWriter, Format, ndjson, wanted
from services.data.reader import Cursor, Reader
from services.data.resources import (
    STREAM_ROWS_MAX,
    Bucket,
    BucketsQuery,
    Point,
    PointsQuery,
    SelectionQuery,
    every_ms,
    refuse_too_many_buckets,
    value_of,
)
from services.data.selection import BucketKey, PointKey, Selection
from services.data.service import DataService
from services.web.operations import Asked, Content, NoBody, Operations, Reply
from services.web.page import LIMIT_MAX, Page, cursor_of, key_of
from services.web.refusal import Refused, unprocessable

ONE: Final = "/v2/tenants/{tenant}/devices/{device}/telemetry"
PAGE_DEFAULT: Final = 100
NDJSON_PAGE: Final = 5000
ARROW_PAGE: Final = 50_000
NEXT: Final = "Next-Cursor"
"""The header of a stream that ends before all is said."""
REFUSALS: Final = {406: "None of these formats.", 503: "Too many reads, or one that takes too long."}
STREAMED: Final = f"In streams the header {NEXT} is the cursor of what comes after, if there is more."
KeyT = TypeVar("KeyT")
Row = tuple[Any, ...]


class Listing(Generic[KeyT]):
    """A long list in the order of its key: `asked(after, limit)` is what finds rows behind a key."""

    def __init__(
        self,
        asked: Callable[[KeyT | None, int], sql.Asked],
        *,
        key: Callable[[Row], KeyT],
        item: Callable[[Row], Any],
    ) -> None:
        self.asked = asked
        self.key = key
        self.item = item


def register(operations: Operations[DataService]) -> None:
    """Register them."""
    operations.add(
        "GET",
        ONE,
        find_points,
        name="list-telemetry",
        summary="The values of a device, by the time that it gave them",
        description=STREAMED,
        tag="telemetry",
        scope="telemetry:read",
        query=PointsQuery,
        answers={200: Content("Values.", {JSON: Page[Point], NDJSON: None, ARROW: None})},
        refusals=REFUSALS,
    )
    operations.add(
        "GET",
        f"{ONE}/buckets",
        find_buckets,
        name="list-telemetry-buckets",
        summary="The numbers of a device, down-sampled",
        description="Buckets begin at multiples of `every` since 1970; one without values is left out. "
        + STREAMED,
        tag="telemetry",
        scope="telemetry:read",
        query=BucketsQuery,
        answers={200: Content("Buckets.", {JSON: Page[Bucket], NDJSON: None, ARROW: None})},
        refusals=REFUSALS,
    )


async def find_points(service: DataService, asked: Asked[PointsQuery, NoBody]) -> Reply | web.StreamResponse:
    """Answer list-telemetry."""
    selected, newest_first = _selection(asked.path, asked.query), asked.query.order == "desc"
    listing: Listing[PointKey] = Listing(
        lambda after, limit: sql.points(selected, after, limit, newest_first=newest_first),
        key=lambda row: (row[0], row[1], row[3]),
        item=lambda row: Point(row[0], row[2], row[3], value_of(*row[4:7])),
    )
    return await _answer(service, asked, listing, _key(asked.query, PointKey))


async def find_buckets(
    service: DataService, asked: Asked[BucketsQuery, NoBody]
) -> Reply | web.StreamResponse:
    """Answer list-telemetry-buckets."""
    selected, length_ms = _selection(asked.path, asked.query), every_ms(asked.query.every)
    now_ms = clock.unix_ms()
    refuse_too_many_buckets(selected.from_ms, min(selected.to_ms, max(now_ms, selected.from_ms)), length_ms)
    listing: Listing[BucketKey] = Listing(
        lambda after, limit: sql.buckets(selected, length_ms, after, limit),
        key=lambda row: (row[0], row[1], row[2]),
        item=lambda row: Bucket(*row),
    )
    return await _answer(service, asked, listing, _key(asked.query, BucketKey))


def _key(query: SelectionQuery, kind: Any) -> Any:
    return key_of(query.cursor, kind)


def _selection(path: Mapping[str, str], query: SelectionQuery) -> Selection:
    if query.from_ >= query.to:
        raise unprocessable("from: not before to")
    return Selection(
        tenant=path["tenant"],
        device=path["device"],
        stream=query.stream,
        metrics=tuple(dict.fromkeys(query.metric)),
        from_ms=query.from_,
        to_ms=query.to,
    )


async def _answer(
    service: DataService, asked: Asked[Any, NoBody], listing: Listing[KeyT], after: KeyT | None
) -> Reply | web.StreamResponse:
    form, reader = wanted(asked.request.headers.get("Accept", "")), service.reader
    if form is Format.JSON:
        limit = min(asked.query.limit or PAGE_DEFAULT, LIMIT_MAX)
        rows = await reader.rows(listing.asked(after, limit + 1))
        following = cursor_of(listing.key(rows[limit - 1])) if len(rows) > limit else ""
        return Reply(Page([listing.item(row) for row in rows[:limit]], following))
    limit = asked.query.limit or STREAM_ROWS_MAX
    headers = {"Content-Type": form.value}
    last = await reader.read(lambda cursor: _last_of(cursor, listing, after, limit))
    if last is not None:
        headers[NEXT] = cursor_of(listing.key(last))
    chunks = (_ndjson if form is Format.NDJSON else _arrow)(reader, listing, after, limit)
    return await _stream(service, asked.request, headers, chunks)


def _last_of(cursor: Cursor, listing: Listing[KeyT], after: KeyT | None, limit: int) -> Row | None:
    """Return the row at `limit` when there is one after it; runs on a thread."""
    statement, values = listing.asked(after, 2)
    found = cursor.execute(f"{statement} OFFSET ?", [*values, limit - 1]).fetchall()
    return found[0] if len(found) == 2 else None


async def _ndjson(
    reader: Reader, listing: Listing[KeyT], after: KeyT | None, limit: int
) -> AsyncIterator[bytes]:
    """Yield lines, a page at a time: no read is open while the caller is slow."""
    while limit:
        page = min(limit, NDJSON_PAGE)
        rows = await reader.rows(listing.asked(after, page))
        if rows:
            yield ndjson([listing.item(row) for row in rows])
            after = listing.key(rows[-1])
        if len(rows) < page:
            return
        limit -= page


async def _arrow(
    reader: Reader, listing: Listing[KeyT], after: KeyT | None, limit: int
) -> AsyncIterator[bytes]:
    """Yield an Arrow IPC stream, a page at a time, with the columns of the query."""
    writer = ArrowWriter()
    while limit:
        page = min(limit, ARROW_PAGE)
        count, last = await reader.read(functools.partial(_into, writer, listing.asked(after, page)))
        yield writer.take()
        if count < page or last is None:
            break
        after, limit = listing.key(last), limit - page
    yield writer.close()


def _into(writer: ArrowWriter, asked: sql.Asked, cursor: Cursor) -> tuple[int, Row | None]:
    """Write what is found as Arrow; runs on a thread."""
    statement, values = asked
    return writer.add(cursor.sql(statement, params=values))


async def _stream(
    service: DataService, request: web.Request, headers: Mapping[str, str], chunks: AsyncIterator[bytes]
) -> web.StreamResponse:
    """Write a stream; one that cannot be finished is broken off, so that nobody takes it for whole."""
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    try:
        async with asyncio.timeout(service.limits.stream_deadline_s):
            async for chunk in chunks:
                await response.write(chunk)
            await response.write_eof()
    except (TimeoutError, Refused):
        if request.transport is not None:
            request.transport.abort()
    return response
