"""The usage plans of a node at work: the decider with its clocks, its file, and what nodes share."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from routing.limits.plan import Plan
from routing.limits.quota import Quota, QuotaError
from routing.limits.rates import LocalRates
from routing.limits.usage import DAY_S, Admission, Usage
from routing.limits.valkey_lease import LeasedQuota, LeasedRates
from routing.limits.valkey_link import ValkeyLink
from routing.tenancy.principal import Principal
from runtime import clock

SUBJECTS_MAX: Final = 50_000
"""Keys and tenants whose rates are known at once."""
COUNTERS_MAX: Final = 100_000
"""Counts of days and months that are kept in memory; all are in the file."""
FORGET_EVERY_S: Final = 3600.0
KEPT_DAYS: Final = 40


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """How nodes share limits through Valkey. `node` is this one's name, the same after a restart."""

    url: str
    node: str
    nodes_expected: int = 1
    deadline_s: float = 0.25


class UsagePlans:
    """Decides about calls; `run` must be running. Counts are in `folder`/usage.db: raises `QuotaError`.

    `link_changed` hears None when Valkey is back, and what is wrong when it goes away.
    """

    def __init__(
        self,
        plans: Mapping[str, Plan],
        *,
        plan_of: Callable[[str], str],
        folder: Path,
        shared: Shared | None,
        link_changed: Callable[[str | None], None],
    ) -> None:
        self._quota = Quota(folder / "usage.db", counters_max=COUNTERS_MAX)
        self._link: ValkeyLink | None = None
        self._leased: tuple[LeasedRates, LeasedQuota] | None = None
        if shared is None:
            rates = LocalRates(subjects_max=SUBJECTS_MAX)
            self._usage = Usage(plans, plan_of=plan_of, rates=rates, quota=self._quota)
            return
        self._link = ValkeyLink(
            shared.url,
            node=shared.node,
            deadline_s=shared.deadline_s,
            nodes_expected=shared.nodes_expected,
            changed=link_changed,
        )
        leased = (
            LeasedRates(self._link, subjects_max=SUBJECTS_MAX, now_s=clock.monotonic_s),
            LeasedQuota(self._link, self._quota, counters_max=COUNTERS_MAX),
        )
        self._leased = leased
        self._usage = Usage(plans, plan_of=plan_of, rates=leased[0], quota=leased[1])

    async def admit(self, principal: Principal, tenant: str) -> Admission:
        """Decide about a call for `tenant`, and count it if it is allowed; then it must be released."""
        if self._link is not None:
            await self._usage.prepare(principal, tenant, clock.unix_s())
        return self._usage.admit(principal, tenant, clock.unix_s(), clock.monotonic_s())

    def release(self, admission: Admission) -> None:
        """Note that an admitted call is over."""
        self._usage.release(admission)

    def replace(self, plans: Mapping[str, Plan]) -> None:
        """Take other plans; what is used up stays used up."""
        self._usage.replace(plans)

    @property
    def nodes(self) -> int:
        """How many nodes share the limits, as far as this one knows."""
        return 1 if self._link is None else self._link.nodes

    @property
    def fallbacks(self) -> int:
        """How many decisions were made with the node's own share, since Valkey was away."""
        return 0 if self._leased is None else sum(part.fallbacks for part in self._leased)

    async def run(self) -> None:
        """Do what goes on beside calls, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._quota.run())
            tasks.create_task(self._forget())
            if self._link is not None:
                tasks.create_task(self._link.run())
            if self._leased is not None:
                tasks.create_task(self._leased[1].run())

    async def _forget(self) -> None:
        while True:
            now = dt.datetime.fromtimestamp(clock.unix_s() - KEPT_DAYS * DAY_S, dt.UTC)
            with contextlib.suppress(QuotaError):  # calls are told that counts cannot be written
                self._quota.forget_before(f"{now:%Y-%m-%d}", f"{now:%Y-%m}")
            await asyncio.sleep(FORGET_EVERY_S)

    def close(self) -> None:
        """Give back what was reserved and not used, and close the file; after `run` has ended."""
        self._quota.close()
