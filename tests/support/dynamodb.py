"""Amazon DynamoDB as moto stands for it, with tables of the mesh's API."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from unittest import mock
from uuid import uuid4

import boto3
from moto.server import ThreadedMotoServer

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


@contextlib.contextmanager
def dynamodb_server() -> Iterator[str]:
    """Run a server, and return its URL; the environment has credentials for it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with mock.patch.dict(os.environ, CREDENTIALS):
            yield f"http://{host}:{port}"
    finally:
        server.stop()


def made_table(url: str) -> str:
    """Make a table as the guide says, and return its name."""
    name = f"mesh-{uuid4()}"
    client = boto3.client("dynamodb", region_name="us-east-1", endpoint_url=url)
    client.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[
            {"AttributeName": "parent", "AttributeType": "S"},
            {"AttributeName": "name", "AttributeType": "S"},
        ],
        KeySchema=[
            {"AttributeName": "parent", "KeyType": "HASH"},
            {"AttributeName": "name", "KeyType": "RANGE"},
        ],
    )
    client.close()
    return name
