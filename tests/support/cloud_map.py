"""AWS Cloud Map as moto stands for it, with a namespace and services."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.gateway import free_port

MOTO = Path(sys.executable).with_name("moto_server")
REGION = "us-east-1"
NAMESPACE = "shop.local"
DEADLINE_S = 30.0


class CloudMap:
    """The namespace `shop.local`; the server can be killed."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        with (folder / "moto.log").open("ab") as log:
            command = [str(MOTO), "-H", "127.0.0.1", "-p", str(port)]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self.client = boto3.client(
            "servicediscovery",
            endpoint_url=self.url,
            region_name=REGION,
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
