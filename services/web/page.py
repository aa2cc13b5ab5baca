"""Pages of long lists: `{"items": [...], "next": CURSOR}`, asked for with `limit` and `cursor`.

A cursor is where the next page begins, written so that nobody takes it for a number to count up. It is
not secret: what it leads to is filtered by the tenant of the path all the same.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Final, Generic, TypeVar

import msgspec

from services.web.refusal import unprocessable

CURSOR_CHARACTERS_MAX: Final = 1024
LIMIT_MAX: Final = 1000
Limit = Annotated[int, msgspec.Meta(ge=1, le=LIMIT_MAX, description="At most so many items.")]
Cursor = Annotated[
    str,
    msgspec.Meta(
        max_length=CURSOR_CHARACTERS_MAX, description="The `next` of the page before; empty for the first."
    ),
]
ItemT = TypeVar("ItemT")
KeyT = TypeVar("KeyT")


class PageQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which page of a list is asked for; queries of lists derive from it."""

    limit: Limit = 100
    cursor: Cursor = ""


class Page(msgspec.Struct, Generic[ItemT], frozen=True):
    """One page; `next` is the cursor of the one after it, or empty on the last."""

    items: list[ItemT]
    next: str = ""


def page_of(items: Sequence[ItemT], limit: int, key: Callable[[ItemT], object]) -> Page[ItemT]:
    """Return a page of `limit` items, from up to one more, which says whether there is a next page."""
    kept = list(items[:limit])
    more = len(items) > limit
    return Page(items=kept, next=cursor_of(key(kept[-1])) if more and kept else "")


def cursor_of(key: object) -> str:
    """Return the cursor that leads to what comes after `key`."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(key)).decode().rstrip("=")


def key_of(cursor: str, kind: type[KeyT]) -> KeyT | None:
    """Return the key that a cursor was made of, or None for the first page; raises `Refused`."""
    if not cursor:
        return None
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        return msgspec.msgpack.decode(raw, type=kind)
    except (binascii.Error, ValueError, msgspec.DecodeError, RecursionError) as error:
        raise unprocessable("the cursor is not one of this list", "invalid-cursor") from error
