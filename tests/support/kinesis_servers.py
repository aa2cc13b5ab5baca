"""The Kinesis doubles of others: moto_server (PyPI) and kinesis-local (npm), as processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.gateway import free_port

ROOT = Path(__file__).parents[2]
STREAM = "telemetry"


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[int]:
    """Run moto_server and yield its port."""
    port = free_port()
    program = Path(sys.executable).parent / "moto_server"
    with _running([str(program), "-H", "127.0.0.1", "-p", str(port)], folder, {}):
        yield port


@contextlib.contextmanager
def kinesis_local(folder: Path) -> Iterator[int]:
    """Run kinesis-local and yield its plain HTTP port."""
    node, script = shutil.which("node"), ROOT / "node_modules/kinesis-local/main.js"
    if node is None or not script.exists():
        pytest.skip("npm packages are not installed")
    port = free_port()
    environment = {
        "KINESIS_MOCK_PLAIN_PORT": str(port),
        "KINESIS_MOCK_TLS_PORT": str(free_port()),
        "LOG_LEVEL": "ERROR",
    }
    with _running([node, str(script)], folder, environment, cwd=script.parent):
        yield port


@contextlib.contextmanager
def _running(
    command: list[str], folder: Path, environment: dict[str, str], cwd: Path = ROOT
) -> Iterator[None]:
    with (folder / "kinesis.log").open("ab") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, **environment},
            cwd=cwd,
            start_new_session=True,  # a wrapper may have started the server as a child of its own
        )
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def client_of(port: int) -> Any:
    """Return a boto3 client."""
    return boto3.client(
        "kinesis",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="eu-central-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5),
    )


def make_stream(client: Any, shards: int, deadline_s: float = 40.0) -> None:
    """Create the stream as soon as the server answers, and wait until it is active."""
    until = time.monotonic() + deadline_s
    while True:
        try:
            with contextlib.suppress(client.exceptions.ResourceInUseException):
                client.create_stream(StreamName=STREAM, ShardCount=shards)
            described = client.describe_stream_summary(StreamName=STREAM)["StreamDescriptionSummary"]
            if described["StreamStatus"] == "ACTIVE":
                return
        except (BotoCoreError, ClientError):
            pass
        assert time.monotonic() < until, "the stream did not become active"
        time.sleep(0.2)


def all_records(client: Any) -> list[dict[str, Any]]:
    """Return the records of every shard, shard by shard."""
    records: list[dict[str, Any]] = []
    for shard in client.list_shards(StreamName=STREAM)["Shards"]:
        iterator = client.get_shard_iterator(
            StreamName=STREAM, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        for _ in range(50):
            answer = client.get_records(ShardIterator=iterator, Limit=1000)
            records += answer["Records"]
            iterator = answer.get("NextShardIterator")
            if not iterator or (not answer["Records"] and not answer.get("MillisBehindLatest")):
                break
    return records
