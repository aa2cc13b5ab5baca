"""Refusals: what a handler raises, and the caller reads as problem details (RFC 9457)."""

from __future__ import annotations

import msgspec
from aiohttp import web

from runtime.problem import problem


class Refused(Exception):
    """The request is refused; `slug` names the reason, `detail` says it, and neither repeats a secret."""

    def __init__(
        self,
        status: int,
        slug: str,
        detail: str,
        *,
        retry_after_s: float = 0.0,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.slug = slug
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.headers = headers

    def response(self) -> web.Response:
        """Return it as an answer."""
        return problem(
            self.status, self.slug, self.detail, retry_after_s=self.retry_after_s, headers=self.headers
        )


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """What went wrong, as `application/problem+json`."""

    type: str
    title: str
    status: int
    detail: str


def not_found(what: str) -> Refused:
    """Return the refusal of something that is not there."""
    return Refused(404, "not-found", f"there is no {what}")


def invalid(detail: str) -> Refused:
    """Return the refusal of a request that is not what the document says."""
    return Refused(400, "invalid-request", detail)


def unprocessable(detail: str, slug: str = "invalid-request") -> Refused:
    """Return the refusal of a request that is what the document says, and makes no sense all the same."""
    return Refused(422, slug, detail)
