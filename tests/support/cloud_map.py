"""AWS Cloud Map as moto stands for it, with a namespace and services."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from unittest import mock

import boto3
from aiohttp import web
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.gateway import free_port
from tests.support.upstream_servers import Server, servers

MOTO = Path(sys.executable).with_name("moto_server")
REGION = "us-east-1"
NAMESPACE = "shop.local"
DEADLINE_S = 30.0


class InRegion:
    """The namespace `shop.local` in one region."""

    def __init__(self, url: str, region: str) -> None:
        self.client = boto3.client(
            "servicediscovery",
            endpoint_url=url,
            region_name=region,
            config=Config(retries={"total_max_attempts": 1}, inject_host_prefix=False),
        )
        self._services: dict[str, str] = {}
        self._namespace()

    def _namespace(self) -> None:
        ends_s = time.monotonic() + DEADLINE_S
        while True:
            try:
                self.client.create_http_namespace(Name=NAMESPACE)
                break
            except (BotoCoreError, ClientError):
                if time.monotonic() > ends_s:
                    raise
                time.sleep(0.1)
        (found,) = self.client.list_namespaces()["Namespaces"]
        self.namespace_id = str(found["Id"])

    def service(self, name: str) -> str:
        """Return the id of a service, which is made if need be."""
        if name not in self._services:
            made = self.client.create_service(Name=name, NamespaceId=self.namespace_id)
            self._services[name] = str(made["Service"]["Id"])
        return self._services[name]

    def register(self, service: str, instance: str, port: int, **attributes: str) -> None:
        found = {"AWS_INSTANCE_IPV4": "127.0.0.1", "AWS_INSTANCE_PORT": str(port), **attributes}
        self.client.register_instance(ServiceId=self.service(service), InstanceId=instance, Attributes=found)

    def deregister(self, service: str, instance: str) -> None:
        self.client.deregister_instance(ServiceId=self.service(service), InstanceId=instance)

    def health(self, service: str, instance: str, status: str) -> None:
        self.client.update_instance_custom_health_status(
            ServiceId=self.service(service), InstanceId=instance, Status=status
        )

    def instances(self, service: str) -> dict[str, str]:
        """Return the health of the instances of a service."""
        answer = self.client.discover_instances(
            NamespaceName=NAMESPACE, ServiceName=service, HealthStatus="ALL"
        )
        return {each["InstanceId"]: each["HealthStatus"] for each in answer["Instances"]}


class CloudMap(InRegion):
    """Cloud Map in one region, and in others beside it; the server can be killed."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        with (folder / "moto.log").open("ab") as log:
            command = [str(MOTO), "-H", "127.0.0.1", "-p", str(port)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        super().__init__(self.url, REGION)

    def beside(self, region: str) -> InRegion:
        """Return Cloud Map in another region."""
        return InRegion(self.url, region)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)


@contextlib.contextmanager
def cloud_map(folder: Path) -> Iterator[CloudMap]:
    """Run one; the environment has credentials for it."""
    with mock.patch.dict(os.environ, {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}):
        made = CloudMap(folder)
        try:
            yield made
        finally:
            made.kill()
            made.client.close()


class Unsteady:
    """Stands before Cloud Map, and throttles all where it is told to."""

    def __init__(self, at: CloudMap) -> None:
        self._at = at
        self.throttling = False
        self.refused = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        if self.throttling:
            self.refused += 1
            said = {"__type": "RequestLimitExceeded", "message": "slow down"}
            return web.json_response(said, status=400, content_type="application/x-amz-json-1.1")
        target, body = request.headers["X-Amz-Target"], await request.read()
        return await asyncio.to_thread(self._passed_on, target, body)

    def _passed_on(self, target: str, body: bytes) -> web.Response:
        operation = target.rpartition(".")[2]
        name = "".join(f"_{each.lower()}" if each.isupper() else each for each in operation).removeprefix("_")
        found = getattr(self._at.client, name)(**json.loads(body))
        found.pop("ResponseMetadata")
        return web.Response(text=json.dumps(found, default=str), content_type="application/x-amz-json-1.1")


@contextlib.asynccontextmanager
async def unsteady(at: CloudMap) -> AsyncIterator[tuple[Server, Unsteady]]:
    """Run a server before Cloud Map that may be told to throttle, or killed for a while."""
    async with servers(1) as (before,):
        made = Unsteady(at)
        before.behaviour = made.answer
        yield before, made
