"""Versions as ETags: who changes something may say which version that was a change of (RFC 9110, 13)."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from services.web.refusal import Refused

IF_MATCH: Final = {"If-Match": "The ETag of the version that this is a change of; another is refused (412)."}
IF_NONE_MATCH: Final = {"If-None-Match": "The ETag that is known already; the same again is 304."}
CHANGED: Final = {412: "It has changed meanwhile."}


def etag(*versions: int) -> str:
    """Return the ETag of a version."""
    return f'"{"-".join(map(str, versions))}"'


def refuse_unless_matches(request: web.Request, current: str) -> None:
    """Refuse a change of another version than the current one."""
    wanted = request.headers.get("If-Match")
    if wanted is not None and wanted.strip() != "*" and current not in _tags(wanted):
        raise Refused(412, "changed-meanwhile", f"it is {current} by now", headers={"ETag": current})


def is_known(request: web.Request, current: str) -> bool:
    """Return whether the caller has the current version already."""
    known = request.headers.get("If-None-Match", "")
    return known.strip() == "*" or current in {tag.removeprefix("W/") for tag in _tags(known)}


def _tags(header: str) -> set[str]:
    return {tag.strip() for tag in header.split(",")}
