"""Registers one instance with AWS Cloud Map for as long as it runs: `headworks mesh register`.

At SIGTERM the instance is deregistered first, so that callers leave it, and the process ends when they had
time for that: what it stands for may end then.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
from collections.abc import Mapping
from typing import Any, Final
from uuid import uuid4

import msgspec

from routing.aws import AwsClient, AwsError, Failure
from routing.balancing.health import Checks
from routing.discovery.active_check import Target, why_not
from routing.discovery.registration import RETRY_BASE_S, RETRY_CAP_S, Registration, Step
from routing.resilience.backoff import full_jitter_s
from runtime import clock

CALL_DEADLINE_S: Final = 5.0
GONE: Final = "InstanceNotFound"
PAGES_MAX: Final = 1000
RANDOM: Final = secrets.SystemRandom().random


class RegisterError(Exception):
    """The instance cannot be registered, or not be deregistered; the text says why."""


class Check(msgspec.Struct, frozen=True):
    """What is asked, how often, and after how many answers in a row minds are changed."""

    target: Target
    interval_s: float
    timeout_s: float
    healthy_after: int
    unhealthy_after: int


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """Which instance is registered where. Without a `check` it is healthy as long as this runs."""

    region: str
    endpoint: str
    namespace: str
    service: str
    instance_id: str
    attributes: Mapping[str, str]
    check: Check | None
    every_s: float
    drain_s: float


async def register(terms: Terms, log: Any) -> None:
    """Keep an instance registered until SIGTERM or SIGINT; raises RegisterError."""
    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    client = AwsClient("servicediscovery", region=terms.region, endpoint=terms.endpoint, connections_max=1)
    registrar = Registrar(terms, client, log)
    try:
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(registrar.run())
            waiting = tasks.create_task(ending.wait())
            await asyncio.wait((running, waiting), return_when=asyncio.FIRST_COMPLETED)
            why = running.result() if running.done() else ""
            running.cancel()
            waiting.cancel()
        await registrar.leave()
        if why:
            raise RegisterError(why)
    finally:
        await client.close()


class Registrar:
    """The driver of one registration."""

    def __init__(self, terms: Terms, client: AwsClient, log: Any) -> None:
        self._terms = terms
        self._client = client
        self._log = log.bind(service=f"{terms.service}.{terms.namespace}", instance=terms.instance_id)
        self._registration = Registration(every_s=terms.every_s, random=RANDOM)
        self._healthy = terms.check is None
        self._changed = asyncio.Event()
        self._service_id = ""
        self._asked = False
        """Whether Cloud Map may know the instance: an answer may be lost."""

    async def run(self) -> str:
        """Check and tell, for as long as it is not cancelled, or until it gives up; returns why."""
        async with asyncio.TaskGroup() as tasks:
            checking = tasks.create_task(self._check())
            why = await self._tell()
            checking.cancel()
        return why

    async def leave(self) -> None:
        """Deregister, and wait until callers have left; raises RegisterError where that was not possible."""
        until_s = clock.monotonic_s() + self._terms.drain_s
        attempt = 0
        while self._asked:
            try:
                await self._call("deregister_instance")
                break
            except AwsError as error:
                if error.code == GONE:
                    break
                attempt += 1
                pause_s = full_jitter_s(attempt, base_s=RETRY_BASE_S, cap_s=RETRY_CAP_S, random=RANDOM)
                if clock.monotonic_s() + pause_s > until_s:
                    raise RegisterError(f"{self._terms.instance_id} is still registered: {error}") from error
                await asyncio.sleep(pause_s)
        if self._asked:
            self._log.info("mesh_deregistered")
            await asyncio.sleep(self._terms.drain_s)

    async def _check(self) -> None:
        check = self._terms.check
        if check is None:
            return
        checks = Checks(
            healthy_after=check.healthy_after, unhealthy_after=check.unhealthy_after, healthy=False
        )
        while True:
            why = await why_not(check.target, deadline_s=check.timeout_s)
            if checks.heard(passed=not why):
                self._healthy = checks.healthy
                self._changed.set()
                self._log.info("mesh_instance_health", healthy=checks.healthy, why=why)
            await asyncio.sleep(check.interval_s * (0.9 + 0.2 * RANDOM()))

    async def _tell(self) -> str:
        why = ""
        while not why:
            self._changed.clear()
            healthy = self._healthy
            step = self._registration.step(healthy=healthy, now_s=clock.monotonic_s())
            if step is not None:
                why = await self._do(step, healthy=healthy)
                continue
            pause_s = self._registration.due_in_s(healthy=healthy, now_s=clock.monotonic_s())
            try:
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
            except TimeoutError:
                continue
        return why

    async def _do(self, step: Step, *, healthy: bool) -> str:
        """Make a call, and hear what becomes of it; returns what will not mend itself."""
        registration = self._registration
        try:
            if not self._service_id:
                self._service_id = await self._found_service()
            if step is Step.REGISTER:
                self._asked = True
                attributes = dict(self._terms.attributes)
                await self._call("register_instance", Attributes=attributes, CreatorRequestId=str(uuid4()))
            elif self._terms.check is None:
                await self._call("get_instance")
            else:
                status = "HEALTHY" if healthy else "UNHEALTHY"
                await self._call("update_instance_custom_health_status", Status=status)
        except RegisterError as error:
            return str(error)
        except AwsError as error:
            return self._failed(step, error)
        again = registration.failures > 0
        registration.done(step, healthy=healthy, now_s=clock.monotonic_s())
        if step is Step.REGISTER:
            self._log.info("mesh_registered")
        elif again:
            self._log.info("mesh_registration_recovered")
        return ""

    def _failed(self, step: Step, error: AwsError) -> str:
        now_s = clock.monotonic_s()
        if step is Step.CONFIRM and error.code == GONE:
            if self._registration.lost(now_s):
                self._log.warning("mesh_registration_lost")
            return ""
        service = self._terms.service
        if error.code == "CustomHealthNotFound":
            return f"{service} takes no health: make it with HealthCheckCustomConfig, or leave out --check"
        if error.failure is Failure.REFUSED and not self._registration.registered:
            return f"{service}: Cloud Map refuses: {error}"
        self._registration.failed(now_s)
        if self._registration.failures == 1:
            self._log.warning("mesh_registration_failed", why=str(error))
        return ""

    async def _call(self, operation: str, **arguments: Any) -> None:
        await self._client.call(
            operation,
            deadline_s=CALL_DEADLINE_S,
            ServiceId=self._service_id,
            InstanceId=self._terms.instance_id,
            **arguments,
        )

    async def _found_service(self) -> str:
        """Return the id of the service; raises RegisterError where there is none."""
        named = {"Name": "NAME", "Values": [self._terms.namespace], "Condition": "EQ"}
        namespace = await self._listed("namespaces", self._terms.namespace, "Name", [named])
        within = {"Name": "NAMESPACE_ID", "Values": [namespace], "Condition": "EQ"}
        return await self._listed("services", self._terms.service, "Name", [within])

    async def _listed(self, kind: str, name: str, field: str, filters: list[dict[str, Any]]) -> str:
        page: dict[str, Any] = {}
        for _ in range(PAGES_MAX):
            answer = await self._client.call(
                f"list_{kind}", deadline_s=CALL_DEADLINE_S, Filters=filters, **page
            )
            for each in answer.get(kind.capitalize(), ()):
                if each.get(field) == name:
                    return str(each["Id"])
            if not answer.get("NextToken"):
                break
            page = {"NextToken": answer["NextToken"]}
        raise RegisterError(f"Cloud Map has no {kind.removesuffix('s')} {name} in {self._terms.region}")
