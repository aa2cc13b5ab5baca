"""Whether a call of the API is within the plans of its key and of its tenant; both must allow it.

- The tenant's plan holds for the sum of all its keys; a key's own plan, where it has one, for the key alone.
- An operator of the platform, who acts for every tenant, is held to the plan of its key only.
- What is refused is not counted anywhere. Exact on one node; over several, as `valkey_lease` says.
- Calls under way are counted on each node alone.
"""

from __future__ import annotations

import datetime as dt
import enum
import math
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from routing.limits.plan import Plan, plan_named
from routing.limits.quota import Counts, QuotaError
from routing.limits.rates import ENOUGH, Rate, Rates
from routing.tenancy.identity import Credential
from routing.tenancy.principal import EVERY_TENANT, Principal
from routing.tenancy.registry import RegistryError

DAY_S: Final = 86_400
BUSY_RETRY_S: Final = 1.0
"""When it is worth trying again while as many calls are under way as may be."""


class Reason(enum.Enum):
    """Why a call is not admitted. `UNAVAILABLE` is a 503: the counts cannot be read or written."""

    NONE = ""
    RATE = "rate"
    CONCURRENCY = "concurrency"
    DAILY = "daily"
    MONTHLY = "monthly"
    UNAVAILABLE = "unavailable"


SLUGS: Final = {
    Reason.NONE: "",
    Reason.RATE: "rate-limit",
    Reason.CONCURRENCY: "concurrency-limit",
    Reason.DAILY: "daily-quota",
    Reason.MONTHLY: "monthly-quota",
    Reason.UNAVAILABLE: "usage-unavailable",
}
"""The problems of calls that are not admitted."""


class Admission(msgspec.Struct, frozen=True):
    """The answer for a call. One that is `allowed` must be released when the call is over.

    `headers` are `RateLimit` and `RateLimit-Policy` (draft-ietf-httpapi-ratelimit-headers-10), and the
    `RateLimit-Limit`, `-Remaining` and `-Reset` of earlier drafts, of what will be short first.
    """

    allowed: bool
    headers: dict[str, str]
    reason: Reason = Reason.NONE
    retry_after_s: float = 0.0
    held: tuple[str, ...] = ()

    @property
    def status(self) -> int:
        """The status of the answer to a call that is not allowed."""
        return 503 if self.reason is Reason.UNAVAILABLE else 429

    @property
    def slug(self) -> str:
        """The problem of a call that is not allowed."""
        return SLUGS[self.reason]


class _Window(msgspec.Struct):
    """One limit of one plan: `quota` of `window_s`, of which `left` may be spent here and now.

    Callers are told of `known`, which over nodes may be more, and of `reset_s`, when it is all there again.
    """

    name: str
    subject: str
    reason: Reason
    quota: int
    window_s: int
    left: float
    known: float
    reset_s: float
    retry_s: float
    period: str = ""
    rate: Rate | None = None


class Usage:
    """Decides for all calls of a node. `plan_of` names the plan of a tenant."""

    def __init__(
        self, plans: Mapping[str, Plan], *, plan_of: Callable[[str], str], rates: Rates, quota: Counts
    ) -> None:
        self._plans = plans
        self._plan_of = plan_of
        self._rates = rates
        self._quota = quota
        self._calendar = _Calendar()
        self._under_way: dict[str, int] = {}
        """Of subjects with calls under way, so never more than there are calls."""

    def replace(self, plans: Mapping[str, Plan]) -> None:
        """Take other plans; what is used up stays used up."""
        self._plans = plans

    async def prepare(self, principal: Principal, tenant: str, now_s: float) -> None:
        """Lease what `admit` will need, where nodes share limits; on one node there is nothing to ask for.

        `admit` must follow without another await, or somebody else may spend what was leased.
        """
        try:
            demands = self._demands(principal, tenant)
            for _, subject, plan in [*demands, *demands]:  # while one is waited for, another may be spent
                for reason, limit in _quotas(plan):
                    await self._quota.prepare(subject, self._calendar.period(reason, now_s)[0], limit)
                if plan.requests_per_s:
                    await self._rates.prepare(subject, _rate(plan))
        except (QuotaError, RegistryError):
            return  # `admit` says so

    def admit(self, principal: Principal, tenant: str, now_s: float, monotonic_s: float) -> Admission:
        """Decide about a call for `tenant`, and count it if it is allowed."""
        try:
            return self._admit(principal, tenant, now_s, monotonic_s)
        except (QuotaError, RegistryError):
            return Admission(allowed=False, headers={}, reason=Reason.UNAVAILABLE, retry_after_s=BUSY_RETRY_S)

    def _admit(self, principal: Principal, tenant: str, now_s: float, monotonic_s: float) -> Admission:
        demands = self._demands(principal, tenant)
        windows = [
            window
            for name, subject, plan in demands
            for window in self._windows(name, subject, plan, now_s, monotonic_s)
        ]
        short = [window for window in windows if window.left < ENOUGH]
        if not short:
            counted = [window for window in windows if window.period]
            short = [each for each in counted if not self._quota.holds(each.subject, each.period, each.quota)]
        if short:
            worst = max(short, key=lambda window: window.retry_s)
            return Admission(
                allowed=False,
                headers=_headers(windows),
                reason=worst.reason,
                retry_after_s=worst.retry_s,
            )
        for window in windows:
            if window.rate is not None:
                self._rates.take(window.subject, window.rate, monotonic_s)
            elif window.period:
                self._quota.spend(window.subject, window.period)
            window.known -= 1
            if window.rate is not None:
                window.reset_s += 1 / window.rate.per_s
        held = tuple(subject for _, subject, plan in demands if plan.concurrent_max)
        for subject in held:
            self._under_way[subject] = self._under_way.get(subject, 0) + 1
        return Admission(allowed=True, headers=_headers(windows), held=held)

    def release(self, admission: Admission) -> None:
        """Note that an admitted call is over."""
        for subject in admission.held:
            left = self._under_way[subject] - 1
            if left:
                self._under_way[subject] = left
            else:
                del self._under_way[subject]

    def _demands(self, principal: Principal, tenant: str) -> list[tuple[str, str, Plan]]:
        """Return (name, subject, plan) of who must allow a call."""
        demands = []
        if principal.tenant != EVERY_TENANT:
            demands.append(("tenant", f"tenant:{tenant}", plan_named(self._plans, self._plan_of(tenant))))
        if principal.plan:
            demands.append(("key", subject_of(principal), plan_named(self._plans, principal.plan)))
        return demands

    def _windows(
        self, name: str, subject: str, plan: Plan, now_s: float, monotonic_s: float
    ) -> list[_Window]:
        windows = []
        if plan.requests_per_s:
            rate = _rate(plan)
            left, known = self._rates.left(subject, rate, monotonic_s)
            windows.append(
                _Window(
                    name=f"{name}-rate",
                    subject=subject,
                    reason=Reason.RATE,
                    quota=int(rate.burst),
                    window_s=max(1, math.ceil(rate.burst / rate.per_s)),
                    left=left,
                    known=known,
                    reset_s=max(0.0, rate.burst - known) / rate.per_s,
                    retry_s=self._rates.wait_s(subject, rate, monotonic_s) if left < ENOUGH else 0.0,
                    rate=rate,
                )
            )
        if plan.concurrent_max:
            free = plan.concurrent_max - self._under_way.get(subject, 0)
            windows.append(
                _Window(
                    name=f"{name}-concurrency",
                    subject=subject,
                    reason=Reason.CONCURRENCY,
                    quota=plan.concurrent_max,
                    window_s=0,
                    left=free,
                    known=free,
                    reset_s=0.0,
                    retry_s=BUSY_RETRY_S,
                )
            )
        for reason, limit in _quotas(plan):
            period, start_s, end_s = self._calendar.period(reason, now_s)
            left = limit - self._quota.used(subject, period)
            windows.append(
                _Window(
                    name=f"{name}-{reason.value}",
                    subject=subject,
                    reason=reason,
                    quota=limit,
                    window_s=end_s - start_s,
                    left=left,
                    known=left,
                    reset_s=end_s - now_s,
                    retry_s=end_s - now_s,
                    period=period,
                )
            )
        return windows


def subject_of(principal: Principal) -> str:
    """Return what a caller's own plan is counted for: an API key by its id, others by their name."""
    if principal.credential is Credential.API_KEY:
        return f"key:{principal.fingerprint}"
    return f"{principal.credential.value}:{principal.tenant}/{principal.name}"


class _Calendar:
    """Remembers the day and the month that it is."""

    def __init__(self) -> None:
        self._periods: dict[Reason, tuple[str, int, int]] = {}

    def period(self, reason: Reason, now_s: float) -> tuple[str, int, int]:
        """Return what `period_of` does."""
        period = self._periods.get(reason)
        if period is None or not period[1] <= now_s < period[2]:
            period = self._periods[reason] = period_of(reason, now_s)
        return period


def period_of(reason: Reason, now_s: float) -> tuple[str, int, int]:
    """Return the name, start and end of the day or month (UTC) that `now_s` is in."""
    now = dt.datetime.fromtimestamp(now_s, dt.UTC)
    if reason is Reason.DAILY:
        start_s = int(now_s // DAY_S) * DAY_S
        return f"{now:%Y-%m-%d}", start_s, start_s + DAY_S
    first = dt.datetime(now.year, now.month, 1, tzinfo=dt.UTC)
    following = dt.datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=dt.UTC)
    return f"{now:%Y-%m}", int(first.timestamp()), int(following.timestamp())


def _quotas(plan: Plan) -> list[tuple[Reason, int]]:
    quotas = ((Reason.DAILY, plan.daily_max), (Reason.MONTHLY, plan.monthly_max))
    return [(reason, limit) for reason, limit in quotas if limit]


def _rate(plan: Plan) -> Rate:
    return Rate(plan.requests_per_s, plan.requests_burst)


def _headers(windows: list[_Window]) -> dict[str, str]:
    if not windows:
        return {}
    policies, limits = [], []
    for window in windows:
        left = max(0, int(window.known + 1e-9))
        if window.reason is Reason.CONCURRENCY:
            policies.append(f'"{window.name}";q={window.quota};qu="concurrent-requests"')
            limits.append(f'"{window.name}";r={left}')
        else:
            policies.append(f'"{window.name}";q={window.quota};w={window.window_s}')
            limits.append(f'"{window.name}";r={left};t={math.ceil(window.reset_s)}')
    headers = {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(limits)}
    timed = [window for window in windows if window.reason is not Reason.CONCURRENCY]
    if timed:
        first = min(timed, key=lambda window: window.known / window.quota)
        headers["RateLimit-Limit"] = str(first.quota)
        headers["RateLimit-Remaining"] = str(max(0, int(first.known + 1e-9)))
        headers["RateLimit-Reset"] = str(math.ceil(first.reset_s))
    return headers
