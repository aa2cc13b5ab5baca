"""Discovery by AWS Cloud Map: what is asked, from answers that are written down; and a real double of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import boto3
import msgspec
import pytest
from aiohttp import web
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from routing.aws import AwsClient, AwsError, Failure
from routing.discovery.cloud_map import ALL_EVERY, IPV4, IPV6, CloudMapSource, Instance, endpoints_of
from routing.discovery.source import DiscoveryError
from tests.support.kinesis_servers import moto

REGION = "eu-central-1"


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


class Answers:
    """Cloud Map with one revision and these instances, which may be made to fail."""

    def __init__(self) -> None:
        self.revision = 1
        self.behind = 0
        """How many revisions the answer with instances lags behind."""
        self.instances: list[dict[str, Any]] = []
        self.error: AwsError | None = None
        self.calls: list[str] = []
        self.arguments: dict[str, Any] = {}

    async def call(self, operation: str, *, deadline_s: float, **arguments: Any) -> dict[str, Any]:
        assert deadline_s == 2
        self.calls.append(operation)
        if self.error is not None:
            raise self.error
        if operation == "discover_instances_revision":
            return {"InstancesRevision": self.revision}
        self.arguments = arguments
        return {"Instances": self.instances, "InstancesRevision": self.revision - self.behind}

    async def close(self) -> None:
        """Nothing is open."""


def instance(number: int, **attributes: str) -> dict[str, Any]:
    has = {"AWS_INSTANCE_IPV4": f"10.0.0.{number}", "AWS_INSTANCE_PORT": "8080", **attributes}
    return {"InstanceId": f"i-{number}", "Attributes": {name: text for name, text in has.items() if text}}


def instances(*given: dict[str, Any]) -> list[Instance]:
    return msgspec.convert(list(given), list[Instance])


def source(answers: Any, port: int = 0, service: str = "pumps") -> CloudMapSource:
    return CloudMapSource(answers, namespace="example", service=service, port=port, deadline_s=2)


async def addresses(asked: CloudMapSource) -> list[str]:
    return [each.address for each in (await asked.poll()).endpoints]


async def test_while_the_revision_stays_one_cheap_call_is_made_and_every_sixth_asks_for_all() -> None:
    answers = Answers()
    answers.instances = [instance(1)]
    asked = source(answers)
    for _ in range(2 * ALL_EVERY):
        assert await addresses(asked) == ["10.0.0.1:8080"]
    assert answers.calls.count("discover_instances_revision") == 2 * ALL_EVERY
    assert answers.calls.count("discover_instances") == 3


async def test_who_is_deregistered_is_gone_at_the_next_poll() -> None:
    answers = Answers()
    answers.instances = [instance(1), instance(2)]
    asked = source(answers)
    await asked.poll()
    answers.instances, answers.revision = [instance(2)], 2
    assert await addresses(asked) == ["10.0.0.2:8080"]


async def test_an_answer_that_is_behind_its_revision_is_asked_for_again() -> None:
    answers = Answers()
    answers.instances, answers.revision, answers.behind = [instance(1)], 5, 1
    asked = source(answers)
    await asked.poll()
    answers.instances, answers.behind = [instance(2)], 0
    assert await addresses(asked) == ["10.0.0.2:8080"]


async def test_who_is_unhealthy_is_gone_at_the_latest_six_polls_later() -> None:
    answers = Answers()
    answers.instances = [instance(1), instance(2)]
    asked = source(answers)
    await asked.poll()
    answers.instances = [instance(1)]  # with the same revision
    seen = [await addresses(asked) for _ in range(ALL_EVERY)]
    assert seen[-1] == ["10.0.0.1:8080"]
    assert answers.arguments["HealthStatus"] == "HEALTHY"


async def test_a_service_that_was_never_there_has_none_and_one_that_is_lost_keeps_its_own() -> None:
    answers = Answers()
    answers.error = AwsError(Failure.MISSING, "ServiceNotFound")
    asked = CloudMapSource(
        answers, namespace="example", service="pumps", port=0, deadline_s=2, missing_is_none=True
    )
    assert await addresses(asked) == []
    answers.error, answers.instances = None, [instance(1)]
    assert await addresses(asked) == ["10.0.0.1:8080"]
    answers.error = AwsError(Failure.MISSING, "ServiceNotFound")
    with pytest.raises(DiscoveryError, match="ServiceNotFound"):
        await asked.poll()


async def test_throttling_is_an_error_and_afterwards_it_goes_on() -> None:
    answers = Answers()
    answers.instances = [instance(1)]
    asked = source(answers)
    await asked.poll()
    answers.error = AwsError(Failure.THROTTLED, "RequestLimitExceeded")
    with pytest.raises(DiscoveryError, match="RequestLimitExceeded"):
        await asked.poll()
    answers.error = None
    assert await addresses(asked) == ["10.0.0.1:8080"]


def test_addresses_zones_weights_and_priorities_come_from_attributes() -> None:
    first, second, third = endpoints_of(
        instances(
            instance(3, AWS_INSTANCE_IPV4="", AWS_INSTANCE_CNAME="h.example", AWS_INSTANCE_PORT=""),
            instance(1, AVAILABILITY_ZONE="eu-central-1a", HEADWORKS_WEIGHT="7", HEADWORKS_PRIORITY="2"),
            instance(2, AWS_INSTANCE_IPV4="", AWS_INSTANCE_IPV6="fd00::2"),
        ),
        port=9000,
    )
    assert (first.address, first.zone, first.weight, first.priority) == (
        "10.0.0.1:8080",
        "eu-central-1a",
        7,
        2,
    )
    assert second.address == "[fd00::2]:8080"
    assert third.address == "h.example:9000"


@pytest.mark.parametrize(
    "attributes",
    [
        {"AWS_INSTANCE_IPV4": ""},
        {"AWS_INSTANCE_PORT": ""},
        {"AWS_INSTANCE_PORT": "70000"},
        {"AWS_INSTANCE_PORT": "-1"},
        {"HEADWORKS_WEIGHT": "1001"},
        {"HEADWORKS_WEIGHT": "\u0663"},
        {"HEADWORKS_PRIORITY": "x"},
    ],
)
def test_an_instance_that_makes_no_sense_is_an_error(attributes: dict[str, str]) -> None:
    with pytest.raises(DiscoveryError, match="Cloud Map"):
        endpoints_of(instances(instance(1, **attributes)), port=0)


def test_an_instance_of_another_family_is_left_out() -> None:
    both = instances(instance(1), instance(2, AWS_INSTANCE_IPV4="", AWS_INSTANCE_IPV6="fd00::2"))
    assert [each.address for each in endpoints_of(both, 0, (IPV4,))] == ["10.0.0.1:8080"]
    assert [each.address for each in endpoints_of(both, 0, (IPV6,))] == ["[fd00::2]:8080"]


class Double:
    """moto's Cloud Map, with a namespace and a service."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.client = boto3.client(
            "servicediscovery",
            endpoint_url=self.url,
            region_name=REGION,
            config=Config(retries={"total_max_attempts": 1}, inject_host_prefix=False),
        )
        self.service_id = ""

    def set_up(self, deadline_s: float = 30) -> None:
        until = time.monotonic() + deadline_s
        while True:
            try:
                self.client.create_http_namespace(Name="example")
                break
            except (BotoCoreError, ClientError):
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
        (namespace,) = self.client.list_namespaces()["Namespaces"]
        made = self.client.create_service(Name="pumps", NamespaceId=namespace["Id"])
        self.service_id = made["Service"]["Id"]

    def register(self, number: int) -> None:
        found = instance(number)
        self.client.register_instance(
            ServiceId=self.service_id, InstanceId=found["InstanceId"], Attributes=found["Attributes"]
        )

    def deregister(self, number: int) -> None:
        self.client.deregister_instance(ServiceId=self.service_id, InstanceId=f"i-{number}")


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Double]:
    with pytest.MonkeyPatch.context() as environment, moto(tmp_path_factory.mktemp("moto")) as port:
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        made = Double(port)
        made.set_up()
        yield made


@contextlib.asynccontextmanager
async def client_of(url: str) -> AsyncIterator[AwsClient]:
    client = AwsClient("servicediscovery", region=REGION, endpoint=url, connections_max=1)
    try:
        yield client
    finally:
        await client.close()


async def test_instances_come_and_go_in_a_double_of_cloud_map(double: Double) -> None:
    async with client_of(double.url) as client:
        asked = CloudMapSource(client, namespace="example", service="pumps", port=0, deadline_s=10)
        await asyncio.to_thread(double.register, 1)
        await asyncio.to_thread(double.register, 2)
        assert await addresses(asked) == ["10.0.0.1:8080", "10.0.0.2:8080"]
        await asyncio.to_thread(double.deregister, 1)
        assert await addresses(asked) == ["10.0.0.2:8080"]


async def test_a_service_that_is_not_there_is_an_error_and_not_an_empty_answer(double: Double) -> None:
    async with client_of(double.url) as client:
        asked = CloudMapSource(client, namespace="example", service="nothing", port=0, deadline_s=10)
        with pytest.raises(DiscoveryError, match="Cloud Map"):
            await asked.poll()


@pytest.mark.parametrize(
    "body", ["{}", "null", "[]", "nonsense", '{"InstancesRevision": "one"}', '{"InstancesRev']
)
async def test_an_answer_that_makes_no_sense_is_an_error_like_any_other(body: str) -> None:
    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(text=body, content_type="application/x-amz-json-1.1")

    app = web.Application()
    app.router.add_post("/{path:.*}", answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with client_of(f"http://127.0.0.1:{runner.addresses[0][1]}") as client:
            with pytest.raises(DiscoveryError, match="Cloud Map"):
                await source(client).poll()
    finally:
        await runner.cleanup()
