"""The answers to `GET /v1/usage` and `GET /v1/usage/deprecated`.

A caller sees its own tenant; an operator sees all of them, or the one it asks for. A page has at most 1000
rows, and what is read for it is bounded as well; `next` says where to go on.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, Protocol

import msgspec
from aiohttp import web

from routing.gateway import histogram
from routing.gateway.analytics import Analytics
from routing.gateway.own_api import ROWS_MAX
from routing.gateway.routes_file import Deprecation
from routing.gateway.usage_store import DAY_S, STEPS, Tally, UsageStore, UsageStoreError
from routing.tenancy.principal import EVERY_TENANT, Principal
from runtime.problem import problem

TALLIES_READ_MAX: Final = 100_000
"""When this many tallies were read for a page, it ends with the step that was read last."""
ROWS: Final = 100
CURSOR_CHARACTERS_MAX: Final = 1024
STARTING: Final = (0, "", "", "")


class Asking(Protocol):
    """What a report needs of an exchange."""

    @property
    def request(self) -> web.BaseRequest:
        """Return the request."""
        ...

    @property
    def principal(self) -> Principal | None:
        """Return who asks."""
        ...


class Refused(Exception):
    """The question makes no sense or is not allowed."""

    def __init__(self, status: int, slug: str, detail: str) -> None:
        super().__init__(detail)
        self.status, self.slug = status, slug


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for: rows of [from_s, to_s) of one tenant, or of all if `tenant` is empty."""

    from_s: float
    to_s: float
    tenant: str
    by: Literal["route", "key", "tenant"] = "route"
    step_s: int = 3600
    limit: int = ROWS
    after: tuple[int, str, str, str] = STARTING


class UsageReports:
    """Answers questions about the use of the API."""

    def __init__(
        self,
        analytics: Analytics,
        deprecations: Callable[[], Mapping[str, Deprecation]],
        now_s: Callable[[], float],
    ) -> None:
        """Take what was counted; `deprecations` returns those of the routes of now, by route."""
        self._analytics = analytics
        self._deprecations = deprecations
        self._now_s = now_s

    async def usage(self, exchange: Asking) -> web.Response:
        """Answer `GET /v1/usage`."""
        return await self._answer(exchange, page_of)

    async def deprecated(self, exchange: Asking) -> web.Response:
        """Answer `GET /v1/usage/deprecated`."""
        said = self._deprecations()
        return await self._answer(exchange, lambda store, question: deprecated_page(store, question, said))

    async def _answer(
        self, exchange: Asking, page: Callable[[UsageStore, Question], dict[str, Any]]
    ) -> web.Response:
        assert exchange.principal is not None  # a route to these is never public
        try:
            question = asked(exchange.request.query, exchange.principal, self._now_s())
            body = await self._analytics.read(lambda store: page(store, question))
        except Refused as error:
            return problem(error.status, error.slug, str(error))
        except UsageStoreError:
            return problem(503, "usage-not-readable", "the counts cannot be read now", retry_after_s=10)
        return web.Response(
            body=msgspec.json.encode(body),
            content_type="application/json",
            headers={"Cache-Control": "no-store"},
        )


def asked(query: Mapping[str, str], principal: Principal, now_s: float) -> Question:
    """Return the question of a query; raises `Refused`."""
    tenant = query.get("tenant", "")
    if principal.tenant != EVERY_TENANT:
        if tenant not in {"", principal.tenant}:
            raise Refused(403, "foreign-tenant", "the caller belongs to another tenant")
        tenant = principal.tenant
    by, step, limit = query.get("by", "route"), query.get("step", "hour"), query.get("limit", str(ROWS))
    if by not in {"route", "key", "tenant"}:
        raise Refused(400, "invalid-request", "by: must be route, key or tenant")
    if step not in STEPS:
        raise Refused(400, "invalid-request", "step: must be minute, hour or day")
    if not (limit.isascii() and limit.isdecimal() and len(limit) <= 4 and 1 <= int(limit) <= ROWS_MAX):
        raise Refused(400, "invalid-request", f"limit: must be 1 to {ROWS_MAX}")
    to_s = _time("to", query["to"]) if "to" in query else now_s + 1
    from_s = _time("from", query["from"]) if "from" in query else to_s - DAY_S
    if from_s >= to_s:
        raise Refused(422, "invalid-request", "from: must be before to")
    after = _cursor(query["cursor"]) if "cursor" in query else STARTING
    return msgspec.convert(
        {
            "from_s": from_s,
            "to_s": to_s,
            "tenant": tenant,
            "by": by,
            "step_s": STEPS[step],
            "limit": int(limit),
            "after": after,
        },
        Question,
    )


def page_of(store: UsageStore, question: Question) -> dict[str, Any]:
    """Return a page of usage: rows by time, then by name."""
    rows: list[dict[str, Any]] = []
    last = question.after
    read = 0
    begin_s = question.from_s // question.step_s * question.step_s
    for at_s in store.times(question.step_s, max(begin_s, question.after[0]), question.to_s):
        groups: dict[str, Tally] = {}
        for tenant, route, fingerprint, tally in store.tallies(question.step_s, at_s, question.tenant):
            name = {"route": route, "key": fingerprint, "tenant": tenant}[question.by]
            groups.setdefault(name, Tally()).add(tally)
            read += 1
        for name in sorted(groups):
            if (at_s, name) <= question.after[:2]:
                continue
            if len(rows) == question.limit:
                return {"rows": rows, "next": cursor_of(last)}
            rows.append(_row(at_s, name, groups[name]))
            last = (at_s, name, "", "")
        if read > TALLIES_READ_MAX and rows:
            return {"rows": rows, "next": cursor_of(last)}
    return {"rows": rows, "next": None}


def deprecated_page(
    store: UsageStore, question: Question, deprecations: Mapping[str, Deprecation]
) -> dict[str, Any]:
    """Return a page of the use of deprecated routes."""
    found = store.deprecated(
        question.from_s, question.to_s, question.tenant, question.after[1:], question.limit + 1
    )
    rows = [
        {
            "route": use.route,
            "tenant": use.tenant,
            "key": use.fingerprint,
            "calls": use.calls,
            "last_call": stamp(use.last_s),
            "agent": use.agent,
            "since": deprecations[use.route].since if use.route in deprecations else "",
            "sunset": deprecations[use.route].sunset if use.route in deprecations else "",
        }
        for use in found[: question.limit]
    ]
    if len(found) <= question.limit:
        return {"rows": rows, "next": None}
    last = found[question.limit - 1]
    return {"rows": rows, "next": cursor_of((0, last.route, last.tenant, last.fingerprint))}


def _row(at_s: int, name: str, tally: Tally) -> dict[str, Any]:
    return {
        "at": stamp(at_s),
        "name": name,
        "calls": tally.calls,
        "client_errors": tally.client_errors,
        "server_errors": tally.server_errors,
        "refused": dict(sorted(tally.refused.items())),
        "bytes_in": tally.bytes_in,
        "bytes_out": tally.bytes_out,
        "latency_s": {
            "p50": round(histogram.quantile_s(tally.latencies, 0.5), 6),
            "p90": round(histogram.quantile_s(tally.latencies, 0.9), 6),
            "p99": round(histogram.quantile_s(tally.latencies, 0.99), 6),
            "mean": round(tally.elapsed_s / max(1, tally.calls), 6),
        },
    }


def stamp(unix_s: float) -> str:
    """Return Unix time as RFC 3339."""
    return dt.datetime.fromtimestamp(int(unix_s), dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _time(name: str, text: str) -> float:
    try:
        found = msgspec.convert(text, dt.datetime)
        if found.tzinfo is None:
            raise Refused(400, "invalid-request", f"{name}: needs a time zone, such as Z")
        return found.timestamp()
    except (msgspec.ValidationError, OverflowError) as error:
        raise Refused(422, "invalid-request", f"{name}: write it as 2026-01-31T00:00:00Z") from error


def cursor_of(place: tuple[int, str, str, str]) -> str:
    """Return a place in the rows as text that means nothing to callers."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(place)).decode().rstrip("=")


def _cursor(text: str) -> tuple[int, str, str, str]:
    try:
        if len(text) > CURSOR_CHARACTERS_MAX:
            raise Refused(422, "invalid-cursor", "cursor: is none of ours")
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return msgspec.msgpack.decode(raw, type=tuple[int, str, str, str])
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise Refused(422, "invalid-cursor", "cursor: is none of ours") from error
