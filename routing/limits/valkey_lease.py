"""Limits that nodes share through Valkey: each takes leases, and spends on its own what it has leased.

Rates. A lease is `LEASE_SHARE` of the burst, at least one token, or as many as calls wait for it. The bucket
in Valkey is charged before a call is admitted, so from the first call on, all nodes together never admit more
than `rate * t + burst`. In any later window of `t` seconds it is at most `rate * t + burst + nodes * lease`,
since nodes may begin it with what they leased before; as much may be refused on one node while another
holds it.

Quotas. A lease is `quota.ahead_max(limit)` calls, at most 1 % of the quota. All nodes together never admit
more than the quota; near its end, up to `nodes` leases may be refused on one node while another holds them.
What a node has leased is known to Valkey and to the node, so a restart of either gives nothing back. When
Valkey forgets everything, nodes tell it again within about `valkey_link.HEARTBEAT_S`; until then one may
lease what another has used, and what a node has used that was restarted too is known after its next call.

While Valkey is away each node has `limit / nodes` for itself, with the nodes that were last counted: of a
rate, at least one call at once, and of a quota, in all. A node that comes or goes in that time makes the sum
wrong by its share; each outage allows one burst more, and of a quota what nodes had leased beyond their
shares. `fallbacks` counts the decisions that were made so.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Final

import msgspec

from routing.limits.quota import Quota, ahead_max
from routing.limits.rates import ENOUGH, LocalRates, Rate
from routing.limits.valkey_link import ValkeyLink

LEASE_SHARE: Final = 0.1
SOON_S: Final = 0.05
"""When it is worth asking again for what was not leased yet."""
KEEP_S: Final = 60
QUOTA_KEEP_S: Final = 40 * 86_400
"""Longer than a month, for which the longest count is good."""
TAKE_TOKENS: Final = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local rate, burst, want = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local kept = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(kept[1]) or burst, tonumber(kept[2]) or now
tokens = math.min(burst, tokens + math.max(0, now - at) * rate)
local granted = math.max(0, math.min(want, math.floor(tokens + 0.000001)))
tokens = tokens - granted
redis.call('HSET', KEYS[1], 'tokens', string.format('%.9f', tokens), 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], math.ceil(burst / rate) + tonumber(ARGV[4]))
return {granted, string.format('%.9f', tokens)}
"""
TAKE_QUOTA: Final = """
local mine = math.max(tonumber(redis.call('HGET', KEYS[1], ARGV[1])) or 0, tonumber(ARGV[2]))
local total = mine
local all = redis.call('HGETALL', KEYS[1])
for place = 1, #all, 2 do
    if all[place] ~= ARGV[1] then total = total + tonumber(all[place + 1]) end
end
local granted = math.max(0, math.min(tonumber(ARGV[3]), tonumber(ARGV[4]) - total))
redis.call('HSET', KEYS[1], ARGV[1], mine + granted)
redis.call('EXPIRE', KEYS[1], tonumber(ARGV[5]))
return {mine + granted, total + granted}
"""


class _Lease(msgspec.Struct):
    """Tokens of a subject that this node has leased, and what it knows of the bucket in Valkey."""

    rate: Rate
    tokens: float = 0.0
    waiting: int = 0
    asking: asyncio.Future[None] | None = None
    shared: float = 0.0
    shared_at_s: float = -math.inf

    def shared_now(self, now_s: float) -> float:
        """Return the tokens that are in Valkey now, as far as this node knows."""
        earned = max(0.0, now_s - self.shared_at_s) * self.rate.per_s
        return min(self.rate.burst, self.shared + earned)


class LeasedRates:
    """`Rates` over nodes; `prepare` must be awaited before `left` is asked."""

    def __init__(self, link: ValkeyLink, *, subjects_max: int, now_s: Callable[[], float]) -> None:
        self._link = link
        self._subjects_max = subjects_max
        self._now_s = now_s
        self._leases: dict[str, _Lease] = {}
        self._local = LocalRates(subjects_max=subjects_max)
        self._take = link.script(TAKE_TOKENS)
        self.fallbacks = 0

    def left(self, subject: str, rate: Rate, now_s: float) -> tuple[float, float]:
        """Return the tokens that this node may spend now, and those left in all, as far as it knows."""
        if not self._link.is_up:
            self.fallbacks += 1
            return self._local.left(subject, self._share(rate), now_s)
        lease = self._lease(subject, rate)
        return lease.tokens, min(rate.burst, lease.tokens + lease.shared_now(now_s))

    def take(self, subject: str, rate: Rate, now_s: float) -> None:
        """Take a token, of which `left` has just told."""
        if not self._link.is_up:
            self._local.take(subject, self._share(rate), now_s)
            return
        lease = self._lease(subject, rate)
        assert lease.tokens >= ENOUGH
        lease.tokens -= 1

    def wait_s(self, subject: str, rate: Rate, now_s: float) -> float:
        """Return how long until a token may be there."""
        if not self._link.is_up:
            return self._local.wait_s(subject, self._share(rate), now_s)
        return max(SOON_S, (1 - self._lease(subject, rate).shared_now(now_s)) / rate.per_s)

    async def prepare(self, subject: str, rate: Rate) -> None:
        """Lease tokens if there are none, unless Valkey has none either, or is away."""
        lease = self._lease(subject, rate)
        lease.waiting += 1
        try:
            while self._is_worth_asking(lease):
                if lease.asking is None:
                    await self._ask(subject, lease)
                else:
                    await asyncio.wait([lease.asking])
        finally:
            lease.waiting -= 1

    def _is_worth_asking(self, lease: _Lease) -> bool:
        has_some = lease.tokens >= ENOUGH
        return self._link.is_up and not has_some and lease.shared_now(self._now_s()) >= ENOUGH

    async def _ask(self, subject: str, lease: _Lease) -> None:
        """Lease as much as those who wait now need; they hear of it by `asking`."""
        rate = lease.rate
        want = max(lease.waiting, math.floor(rate.burst * LEASE_SHARE), 1)
        lease.asking = asyncio.get_running_loop().create_future()
        try:
            key = f"headworks:rate:{subject}"
            answer = await self._link.call(self._take, [key], [rate.per_s, rate.burst, want, KEEP_S])
            if answer is not None:
                lease.tokens += int(answer[0])
                lease.shared, lease.shared_at_s = float(answer[1]), self._now_s()
        finally:
            lease.asking.set_result(None)
            lease.asking = None

    def _lease(self, subject: str, rate: Rate) -> _Lease:
        """Return the lease of a subject, now the one used last."""
        lease = self._leases.pop(subject, None)
        if lease is None or lease.rate != rate:
            while len(self._leases) >= self._subjects_max:
                del self._leases[next(iter(self._leases))]  # what it still had is lost, never given twice
            lease = _Lease(rate, shared=rate.burst)
        self._leases[subject] = lease
        return lease

    def _share(self, rate: Rate) -> Rate:
        nodes = self._link.nodes
        return Rate(rate.per_s / nodes, max(1.0, rate.burst / nodes))


class _Grant(msgspec.Struct):
    """What this node may count of a quota in all, and what all nodes may, as Valkey has said."""

    own: int = 0
    total: int = 0
    asking: asyncio.Future[None] | None = None


class LeasedQuota:
    """A `Quota` over nodes, kept in the node's own; `prepare` must be awaited before `holds` is asked."""

    def __init__(self, link: ValkeyLink, quota: Quota, *, counters_max: int) -> None:
        self._link = link
        self._quota = quota
        self._counters_max = counters_max
        self._grants: dict[tuple[str, str], _Grant] = {}
        self._take = link.script(TAKE_QUOTA)
        self.fallbacks = 0

    def used(self, subject: str, period: str) -> int:
        """Return how many calls all nodes have counted, with what others have leased."""
        grant = self._grant(subject, period)
        own = self._quota.used(subject, period)
        return max(own, grant.total - max(0, grant.own - own))

    def holds(self, subject: str, period: str, limit: int) -> bool:
        """Return whether this node may count one more call."""
        own = self._grant(subject, period).own
        if not self._link.is_up:
            self.fallbacks += 1
            own = max(own, math.ceil(limit / self._link.nodes))
        return self._quota.holds(subject, period, min(limit, own), quota=limit)

    def spend(self, subject: str, period: str) -> None:
        """Count a call that is `held`."""
        self._quota.spend(subject, period)

    async def prepare(self, subject: str, period: str, limit: int) -> None:
        """Lease a part of the quota if nothing of the last is left."""
        grant = self._grant(subject, period)
        while grant.asking is not None:
            await asyncio.wait([grant.asking])
        own = self._quota.used(subject, period)
        if own < grant.own or grant.total >= limit or not self._link.is_up:
            return
        grant.asking = asyncio.get_running_loop().create_future()
        try:
            await self._tell(grant, (period, subject), own, ahead_max(limit), limit)
        finally:
            grant.asking.set_result(None)
            grant.asking = None

    async def run(self) -> None:
        """Tell Valkey again what this node has leased whenever it has forgotten, until cancelled."""
        while True:
            await self._link.forgotten.wait()
            self._link.forgotten.clear()
            for key, grant in list(self._grants.items()):
                if grant.own:
                    await self._tell(grant, key, grant.own, 0, 0)

    async def _tell(self, grant: _Grant, key: tuple[str, str], own: int, want: int, limit: int) -> None:
        """Say what this node has counted or leased, and lease `want` more."""
        arguments: list[str | float] = [self._link.node, max(own, grant.own), want, limit, QUOTA_KEEP_S]
        answer = await self._link.call(self._take, [":".join(("headworks:quota", *key))], arguments)
        if answer is not None:
            grant.own, grant.total = max(grant.own, int(answer[0])), int(answer[1])

    def _grant(self, subject: str, period: str) -> _Grant:
        key = (period, subject)
        grant = self._grants.pop(key, None) or _Grant()
        while len(self._grants) >= self._counters_max:
            del self._grants[next(iter(self._grants))]  # Valkey knows it, and says it again
        self._grants[key] = grant
        return grant
