"""How the gateway refuses a request: a status, a slug and a sentence, which become a problem (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping


class Refused(Exception):
    """Ends a request. `more` are further members of the problem, `close` ends the connection too."""

    def __init__(
        self,
        status: int,
        slug: str,
        detail: str,
        *,
        retry_after_s: float = 0.0,
        headers: Mapping[str, str] | None = None,
        more: Mapping[str, object] | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(slug)
        self.status = status
        self.slug = slug
        self.detail = detail
        self.retry_after_s = retry_after_s
        self.headers = headers
        self.more = more
        self.close = close
