"""What arrives at other people's Kinesis de-aggregates with the public library to exactly what was sent."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import pytest
from aws_kinesis_agg.deaggregator import deaggregate_records

from tests.support import ledger
from tests.support.gateway import gateway
from tests.support.kinesis_servers import STREAM, all_records, client_of, kinesis_local, make_stream, moto
from tests.support.mqtt_load import Publisher

pytestmark = pytest.mark.end_to_end


def user_records(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    raw = [
        {
            "kinesis": {
                "kinesisSchemaVersion": "1.0",
                "approximateArrivalTimestamp": 0,
                "data": base64.b64encode(record["Data"]).decode(),
                "partitionKey": record["PartitionKey"],
                "sequenceNumber": record["SequenceNumber"],
            }
        }
        for record in records
    ]
    users = []
    for user in deaggregate_records(raw):
        envelope = json.loads(base64.b64decode(user["kinesis"]["data"]))
        assert user["kinesis"]["partitionKey"] == f"{envelope['tenant']}/{envelope['device']}"
        users.append(envelope)
    return users


@pytest.mark.parametrize("double", [moto, kinesis_local])
async def test_records_de_aggregate_to_what_was_sent(tmp_path: Path, double: Any) -> None:
    with double(tmp_path) as port:
        client = client_of(port)
        await asyncio.to_thread(make_stream, client, 3)
        sink = (
            f'kind = "kinesis"\nstream = "{STREAM}"\nregion = "eu-central-1"\n'
            f'endpoint = "http://127.0.0.1:{port}"'
        )
        with gateway(tmp_path, sink=sink) as node:
            publishers = [Publisher(f"device-{number}", 8) for number in range(10)]
            over = asyncio.Event()
            async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
                for publisher in publishers:
                    tasks.create_task(publisher.run(node.mqtt, over))
                await asyncio.sleep(1.5)
                over.set()
            await asyncio.to_thread(node.wait_until, node.delivered)
            assert await asyncio.to_thread(node.stop) == 0
        records = await asyncio.to_thread(all_records, client)
    users = user_records(records)
    arrived = [(user["id"], user["device"], user["payload"]["seq"]) for user in users]
    sent = set().union(*(publisher.sent() for publisher in publishers))
    ledger.check(sent, sent, arrived)
    assert len(arrived) == len(sent) > 500
    assert len(records) < len(users) / 2
