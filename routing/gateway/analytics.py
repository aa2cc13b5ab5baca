"""How the API is used: calls, errors, refusals, bytes and latency by route, tenant and key.

`record` adds to counts in memory and does no I/O; a driver writes what came since into SQLite every
`flush_s`. Killed without warning, the process loses what came since the last flush: at most `flush_s`, which
is a minute or less. Keys above `keys_max` in a minute are counted as `(other)`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec
from aiohttp import web

from routing.gateway import histogram
from routing.gateway.routes_file import Route
from routing.gateway.usage_store import (
    DAY_S,
    MINUTE_S,
    OTHER,
    Key,
    Retention,
    Tally,
    UsageStore,
    UsageStoreError,
)
from routing.tenancy.identity import Credential
from routing.tenancy.principal import Principal
from runtime import clock

NO_ROUTE: Final = "(none)"
"""The route of requests for which there is none; like OTHER, what nothing else can be called."""
NOBODY: Final = "(nobody)"
"""The tenant and key of callers who are not known."""
AGENT: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,40}(/[A-Za-z0-9!#$%&'*+.^_`|~-]{1,20})?")
KEY_CHARACTERS_MAX: Final = 128
REASONS_MAX: Final = 32
"""How many reasons of a refusal one key has; they come from a closed set, so this is never met."""


class Answered(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A request that was answered, as far as it is counted.

    `fingerprint` names the credential for good: the id of a key, or the name in a JWT, but never a `jti`, of
    which each token has its own. `agent` is its User-Agent, wanted for deprecated routes only.
    """

    route: str
    tenant: str
    fingerprint: str
    status: int
    refused: str
    elapsed_s: float
    bytes_in: int
    bytes_out: int
    deprecated: bool = False
    agent: str = ""


class Ended(Protocol):
    """What is wanted of an exchange that has ended."""

    @property
    def request(self) -> web.BaseRequest:
        """Return the request."""

    @property
    def route(self) -> Route | None:
        """Return its route, or None if there was none for it."""

    @property
    def principal(self) -> Principal | None:
        """Return who called, or None if that is not known."""

    @property
    def status(self) -> int:
        """Return the status of the answer."""

    @property
    def refused(self) -> str:
        """Return why the gateway refused it, or nothing."""

    @property
    def bytes_in(self) -> int:
        """Return the bytes of its body."""

    @property
    def bytes_out(self) -> int:
        """Return the bytes of the answer's body."""


def answered(exchange: Ended, elapsed_s: float) -> Answered:
    """Return what is counted of an exchange.

    The tenant is the caller's and never the path's, which anybody may write; the key is one that lives: an
    API key by its id, and any other caller by its name.
    """
    route, principal = exchange.route, exchange.principal
    deprecated = route is not None and route.deprecation is not None
    tenant = key = NOBODY
    if principal is not None:
        tenant, key = principal.tenant, principal.name
        if principal.credential is Credential.API_KEY and principal.fingerprint:
            key = principal.fingerprint
    return Answered(
        route=NO_ROUTE if route is None else route.name,
        tenant=tenant,
        fingerprint=key[:KEY_CHARACTERS_MAX],
        status=exchange.status,
        refused=exchange.refused,
        elapsed_s=elapsed_s,
        bytes_in=exchange.bytes_in,
        bytes_out=exchange.bytes_out,
        deprecated=deprecated,
        agent=exchange.request.headers.get("User-Agent", "") if deprecated else "",
    )


class LastUse(msgspec.Struct, gc=False):
    """How often a deprecated route was called by a key, when last, and by which product."""

    calls: int
    last_s: float
    agent: str


class Counts:
    """What came since it was taken last, by minute; a decider, which is handed the time."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max
        self._tallies: dict[Key, Tally] = {}
        self._deprecated: dict[Key, LastUse] = {}

    def record(self, answered: Answered, now_s: float) -> None:
        """Count a request that was answered; a clock that goes back only changes which minute it is in.

        Hot: guarded by bench/test_validation.py::test_record.
        """
        minute_s = int(now_s // MINUTE_S) * MINUTE_S
        key = (minute_s, answered.route, answered.tenant, answered.fingerprint)
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._new(key)
        tally.calls += 1
        if answered.status >= 500:
            tally.server_errors += 1
        elif answered.status >= 400:
            tally.client_errors += 1
        if answered.refused:
            refused = tally.refused
            if answered.refused in refused or len(refused) < REASONS_MAX:
                refused[answered.refused] = refused.get(answered.refused, 0) + 1
        tally.bytes_in += answered.bytes_in
        tally.bytes_out += answered.bytes_out
        tally.elapsed_s += answered.elapsed_s
        number = histogram.bucket(answered.elapsed_s)
        tally.latencies[number] = tally.latencies.get(number, 0) + 1
        if answered.deprecated:
            self._record_deprecated(answered, now_s)

    def _new(self, key: Key) -> Tally:
        """Return the tally of a key that is not there yet, or of all others on its route."""
        if len(self._tallies) >= self._keys_max:
            key = (key[0], key[1], OTHER, OTHER)
        return self._tallies.setdefault(key, Tally())

    def _record_deprecated(self, answered: Answered, now_s: float) -> None:
        day_s = int(now_s // DAY_S) * DAY_S
        key = (day_s, answered.route, answered.tenant, answered.fingerprint)
        if key not in self._deprecated and len(self._deprecated) >= self._keys_max:
            key = (day_s, answered.route, OTHER, OTHER)
        use = self._deprecated.setdefault(key, LastUse(0, now_s, ""))
        use.calls += 1
        use.last_s = now_s
        use.agent = product(answered.agent)

    def take(self) -> tuple[dict[Key, Tally], dict[Key, LastUse]]:
        """Return all that was counted since the last call."""
        taken = self._tallies, self._deprecated
        self._tallies, self._deprecated = {}, {}
        return taken

    def put_back(self, tallies: dict[Key, Tally], deprecated: dict[Key, LastUse]) -> None:
        """Add again what could not be written."""
        for key, tally in tallies.items():
            (self._tallies.get(key) or self._new(key)).add(tally)
        for key, use in deprecated.items():
            if key in self._deprecated:
                self._deprecated[key].calls += use.calls
            elif len(self._deprecated) < self._keys_max:
                self._deprecated[key] = use


def product(user_agent: str) -> str:
    """Return the product of a User-Agent, such as `curl/8.5.0` (RFC 9110 10.1.5), or nothing."""
    found = AGENT.match(user_agent)
    return found[0] if found else ""


class Analytics:
    """The counts of this process and the file that they are kept in."""

    def __init__(
        self,
        path: Path,
        *,
        keys_max: int,
        retention: Retention,
        flush_s: float,
        log: Any,
        now_s: Callable[[], float] = clock.unix_s,
    ) -> None:
        """Open the file; raises `UsageStoreError`."""
        assert 0 < flush_s <= MINUTE_S
        self._counts = Counts(keys_max)
        self._store = UsageStore(path, keys_max=keys_max, retention=retention)
        self._flush_s = flush_s
        self._log = log
        self._now_s = now_s
        self._writing = asyncio.Lock()

    def record(self, answered: Answered) -> None:
        """Count a request that was answered; no I/O."""
        self._counts.record(answered, self._now_s())

    async def run(self) -> None:
        """Write what was counted every `flush_s`, until cancelled."""
        while True:
            await asyncio.sleep(self._flush_s)
            await self.flush()

    async def flush(self) -> None:
        """Write what was counted; what cannot be written is kept for the next time."""
        async with self._writing:
            tallies, deprecated = self._counts.take()
            uses = {key: (use.calls, use.last_s, use.agent) for key, use in deprecated.items()}
            try:
                await asyncio.to_thread(self._store.add, tallies, uses, self._now_s())
            except UsageStoreError as error:
                self._counts.put_back(tallies, deprecated)
                self._log.warning("usage_not_written", why=str(error))

    async def read(self, read: Callable[[UsageStore], Any]) -> Any:
        """Write what was counted, then return what `read` reads, on a thread; raises `UsageStoreError`."""
        await self.flush()
        async with self._writing:
            return await asyncio.to_thread(read, self._store)

    async def aclose(self) -> None:
        """Write what was counted and close the file."""
        await self.flush()
        self._store.close()
