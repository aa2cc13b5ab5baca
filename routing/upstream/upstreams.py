"""All upstreams of a gateway: calls by name, discovery and checks in the background, live reload.

The composition root of `routing/upstream`, `routing/balancing` and `routing/discovery`.
"""

from __future__ import annotations

import asyncio
import contextlib
import random as standard_random
import ssl
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Final, Protocol

from routing.aws import AwsClient
from routing.balancing.policy import Random
from routing.discovery.source import DiscoveryError
from routing.discovery.sources import source_of
from routing.discovery.static import StaticSource
from routing.discovery.watcher import Watcher
from routing.gateway.routes_file import Upstream
from routing.upstream import kinesis, lambda_function
from routing.upstream.call import Answer, Call, Reason, UpstreamError
from routing.upstream.events import UpstreamEvents
from routing.upstream.servers import Servers
from routing.upstream.service import Service
from runtime.settings_file import SettingsError

DRAIN_S: Final = 300.0
"""How long the calls of an upstream that is gone or changed may last before their connections are closed."""
CLOSE_S: Final = 5.0


class Backend(Protocol):
    """One upstream of some kind."""

    async def call(self, call: Call) -> Answer:
        """Return the answer, which the caller closes; raises `UpstreamError`."""

    async def run(self) -> None:
        """Do what is to be done between calls, until it is done or cancelled."""

    def status(self) -> dict[str, Any]:
        """Return what an operator wants to see."""

    async def close(self) -> None:
        """Close the connections."""


class _Running:
    """An upstream in use or being drained."""

    def __init__(self, name: str, terms: Upstream, backend: Backend, watcher: Watcher | None) -> None:
        self.name = name
        self.terms = terms
        self.backend = backend
        self.watcher = watcher
        self.under_way = 0
        self.idle = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    def jobs(self) -> list[Coroutine[Any, Any, None]]:
        """Return what is to run for as long as the upstream is used."""
        jobs = [self.watcher.run()] if self.watcher is not None else []
        jobs.append(self.backend.run())
        return jobs


class Upstreams:
    """The driver that the gateway calls. `replace` and `call` work at once; `run` keeps it alive."""

    def __init__(self, *, events: UpstreamEvents, random: Random = standard_random.random) -> None:
        self._events = events
        self._random = random
        self._of: dict[str, _Running] = {}
        self._leaving: set[_Running] = set()
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Poll discovery and check health until cancelled; then close all connections."""
        assert self._group is None
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                for running in self._of.values():
                    self._start(running, group)
                for running in self._leaving:
                    group.create_task(self._drain(running))
                await asyncio.Event().wait()
        finally:
            self._group = None
            for running in [*self._of.values(), *self._leaving]:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_S):
                        await running.backend.close()

    def replace(self, upstreams: dict[str, Upstream]) -> None:
        """Use `upstreams` from now on; raises `SettingsError`, and then nothing has changed.

        What is the same keeps its connections and what it has learned. What is gone or changed gets no new
        call, and its connections are closed when its last call has ended.
        """
        after: dict[str, _Running] = {}
        for name, terms in upstreams.items():
            if terms.kind == "internal":
                continue
            before = self._of.get(name)
            after[name] = before if before is not None and before.terms == terms else self._make(name, terms)
        before_all, self._of = self._of, after
        for name, running in before_all.items():
            if after.get(name) is not running:
                self._leave(running)
        if self._group is not None:
            for name, running in after.items():
                if before_all.get(name) is not running:
                    self._start(running, self._group)

    @contextlib.asynccontextmanager
    async def call(self, name: str, call: Call) -> AsyncIterator[Answer]:
        """Call the upstream `name`; raises `UpstreamError`, also later while the body is read."""
        running = self._of.get(name)
        if running is None:
            raise UpstreamError(Reason.NOT_FOUND, "there is no such upstream")
        if running.under_way >= running.terms.breaker.requests_max:
            raise UpstreamError(Reason.OVERFLOW, "too many requests are under way", retry_after_s=1.0)
        running.under_way += 1
        try:
            answer = await running.backend.call(call)
            try:
                yield answer
            finally:
                answer.close()
        finally:
            running.under_way -= 1
            if not running.under_way:
                running.idle.set()

    def status(self) -> dict[str, Any]:
        """Return each upstream with its endpoints, their health, and what is under way."""
        return {
            name: {
                **running.backend.status(),
                "under_way": running.under_way,
                "discovery_failures": running.watcher.failures if running.watcher is not None else 0,
            }
            for name, running in self._of.items()
        }

    def _make(self, name: str, terms: Upstream) -> _Running:
        if terms.kind == "http":
            return self._make_servers(name, terms)
        if terms.kind == "lambda":
            service, ask = "lambda", lambda_function.asks(terms.function)
        else:
            service, ask = "kinesis", kinesis.asks(terms.stream)
        client = AwsClient(
            service, region=terms.region, endpoint=terms.endpoint, connections_max=terms.connections_max
        )
        backend = Service(name, terms, client, ask, events=self._events, random=self._random)
        return _Running(name, terms, backend, None)

    def _make_servers(self, name: str, terms: Upstream) -> _Running:
        backend = Servers(
            name, terms, context=client_context(name, terms), events=self._events, random=self._random
        )
        discovery = terms.discovery
        assert discovery is not None, "routes_file.check"
        try:
            source = source_of(discovery)
        except DiscoveryError as error:
            raise SettingsError(f"upstreams.{name}.discovery: {error}") from error
        if isinstance(source, StaticSource):
            backend.found(source.found)
            return _Running(name, terms, backend, None)
        watcher = Watcher(
            name,
            source,
            poll_s=discovery.poll_s,
            deadline_s=discovery.deadline_s,
            found=backend.found,
            heard=self._events,
            random=self._random,
        )
        return _Running(name, terms, backend, watcher)

    def _start(self, running: _Running, group: asyncio.TaskGroup) -> None:
        running.tasks = [group.create_task(job) for job in running.jobs()]

    def _leave(self, running: _Running) -> None:
        for task in running.tasks:
            task.cancel()
        self._leaving.add(running)
        if self._group is not None:
            self._group.create_task(self._drain(running))

    async def _drain(self, running: _Running) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while running.under_way:
                    running.idle.clear()
                    await running.idle.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await running.backend.close()
        self._leaving.discard(running)


def client_context(name: str, terms: Upstream) -> ssl.SSLContext | None:
    """Return what verifies the servers of an upstream, with our own certificate; raises `SettingsError`."""
    if not terms.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=terms.ca or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if terms.certificate:
            context.load_cert_chain(terms.certificate, terms.key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"upstreams.{name}: cannot read ca, certificate or key: {error}") from error
    return context
