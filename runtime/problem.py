"""Errors as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
from aiohttp import web


def problem(
    status: int,
    slug: str,
    detail: str,
    *,
    retry_after_s: float = 0.0,
    headers: Mapping[str, str] | None = None,
    more: Mapping[str, object] | None = None,
) -> web.Response:
    """Return an error response; `retry_after_s` above 0 becomes a Retry-After of whole seconds.

    `more` are further members of the problem.
    """
    extra = dict(headers or {})
    if retry_after_s > 0 or status in {429, 503}:
        extra["Retry-After"] = str(max(1, math.ceil(retry_after_s)))
    body = {"type": f"urn:headworks:problem:{slug}", "title": slug.replace("-", " "), "status": status}
    return web.Response(
        status=status,
        body=msgspec.json.encode({**body, "detail": detail, **(more or {})}),
        content_type="application/problem+json",
        headers=extra,
    )
