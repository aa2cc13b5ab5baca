"""Endpoints in AWS Cloud Map: one cheap call a poll while nothing changes.

`DiscoverInstancesRevision` says whether an instance was registered or deregistered; only then, and at every
sixth poll, since the revision says nothing of health, all healthy instances are asked for. So an instance
that is gone is gone at the next poll, and one that Cloud Map finds unhealthy at the latest six polls later.

An instance's address is AWS_INSTANCE_IPV4, AWS_INSTANCE_IPV6 or AWS_INSTANCE_CNAME with AWS_INSTANCE_PORT;
its zone is AVAILABILITY_ZONE, as Amazon ECS sets it; HEADWORKS_WEIGHT and HEADWORKS_PRIORITY are ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar

import msgspec

from routing.aws import AwsError, Failure
from routing.discovery.source import (
    PRIORITY_MAX,
    WEIGHT_MAX,
    DiscoveryError,
    Found,
    found,
    join_address,
)
from routing.gateway.routes_file import Endpoint

ALL_EVERY: Final = 6
"""Polls, of which one asks for all instances whatever the revision is."""
IPV4: Final = "AWS_INSTANCE_IPV4"
IPV6: Final = "AWS_INSTANCE_IPV6"
CNAME: Final = "AWS_INSTANCE_CNAME"
ADDRESSES: Final = (IPV4, IPV6, CNAME)
NO_ATTRIBUTES: Final[Mapping[str, str]] = {}
INSTANCES_MAX: Final = 1000
"""What one DiscoverInstances can return; there are no pages."""


class Instance(msgspec.Struct, frozen=True):
    """An instance, as DiscoverInstances gives it."""

    id: str = msgspec.field(name="InstanceId")
    attributes: dict[str, str] = msgspec.field(name="Attributes", default_factory=dict)


class _Revision(msgspec.Struct, frozen=True):
    revision: int = msgspec.field(name="InstancesRevision")


class _Instances(msgspec.Struct, frozen=True):
    instances: list[Instance] = msgspec.field(name="Instances")
    revision: int | None = msgspec.field(name="InstancesRevision", default=None)


AnswerT = TypeVar("AnswerT", _Revision, _Instances)


class Client(Protocol):
    """Calls Cloud Map; raises `AwsError`."""

    async def call(self, operation: str, *, deadline_s: float, **arguments: Any) -> dict[str, Any]:
        """Return the answer of an operation."""

    async def close(self) -> None:
        """Close the connections."""


class CloudMapSource:
    """The healthy instances of one service of a namespace that have `attributes`.

    `port` is for those that say none; of their addresses, the first of `families` that they have is taken.
    With `missing_is_none`, a service that was never there has no instances. One that is not there any more
    had none at the end, and with another account's credentials all are not there: then the last answer holds.
    """

    def __init__(
        self,
        client: Client,
        *,
        namespace: str,
        service: str,
        port: int,
        deadline_s: float,
        attributes: Mapping[str, str] = NO_ATTRIBUTES,
        families: Sequence[str] = ADDRESSES,
        missing_is_none: bool = False,
    ) -> None:
        self._missing_is_none = missing_is_none
        self._client = client
        self._filter = {"QueryParameters": dict(attributes)} if attributes else {}
        self._families = families
        self._where = {"NamespaceName": namespace, "ServiceName": service}
        self._port = port
        self._deadline_s = deadline_s
        self._revision = -1
        self._polls = 0
        self._last: Found | None = None

    async def poll(self) -> Found:
        """Return the instances that are healthy; raises `DiscoveryError`, also while throttled."""
        try:
            answer = await self._client.call(
                "discover_instances_revision", deadline_s=self._deadline_s, **self._where
            )
            revision = _read(answer, _Revision).revision
            self._polls += 1
            if self._last is not None and revision == self._revision and self._polls % ALL_EVERY:
                return self._last
            answer = await self._client.call(
                "discover_instances",
                deadline_s=self._deadline_s,
                HealthStatus="HEALTHY",
                MaxResults=INSTANCES_MAX,
                **self._filter,
                **self._where,
            )
        except AwsError as error:
            never = self._last is None or not self._last.endpoints
            if self._missing_is_none and never and error.failure is Failure.MISSING:
                self._last = found([], "missing")
                return self._last
            raise DiscoveryError(f"Cloud Map: {error}") from error
        instances = _read(answer, _Instances)
        endpoints = endpoints_of(instances.instances, self._port, self._families)
        digest = hashlib.blake2b(msgspec.json.encode(endpoints), digest_size=8).hexdigest()
        self._last = found(endpoints, digest)
        # Cloud Map's replicas may be behind: what came is no newer than the older of both.
        self._revision = revision if instances.revision is None else min(revision, instances.revision)
        return self._last

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


def endpoints_of(
    instances: Sequence[Instance], port: int, families: Sequence[str] = ADDRESSES
) -> list[Endpoint]:
    """Return the endpoints of instances by id; raises `DiscoveryError` for one without address.

    One whose address is of another family alone is left out.
    """
    endpoints: list[Endpoint] = []
    for instance in sorted(instances, key=lambda each: each.id):
        has = instance.attributes
        host = next((has[name] for name in families if has.get(name)), "")
        if not host and any(has.get(name) for name in ADDRESSES):
            continue
        at = _number(has, "AWS_INSTANCE_PORT", port, 65_535)
        if not host or not at:
            raise DiscoveryError(f"Cloud Map: instance {instance.id} has no address or no port")
        endpoints.append(
            Endpoint(
                address=join_address(host, at),
                weight=_number(has, "HEADWORKS_WEIGHT", 1, WEIGHT_MAX),
                zone=has.get("AVAILABILITY_ZONE", ""),
                priority=_number(has, "HEADWORKS_PRIORITY", 0, PRIORITY_MAX),
            )
        )
    return endpoints


def _read(answer: dict[str, Any], kind: type[AnswerT]) -> AnswerT:
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError as error:
        raise DiscoveryError("Cloud Map: an answer that makes no sense") from error


def _number(has: Mapping[str, str], name: str, default: int, number_max: int) -> int:
    text = has.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) <= 5 and int(text) <= number_max):
        raise DiscoveryError(f"Cloud Map: {name} is not a number up to {number_max}")
    return int(text)
