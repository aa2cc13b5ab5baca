"""The trace context of an HTTP request goes into the records that it becomes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiohttp
import pytest

from tests.end_to_end.test_clients import telemetry
from tests.end_to_end.test_kinesis_sinks import user_records
from tests.support.gateway import gateway
from tests.support.kinesis_servers import STREAM, all_records, client_of, make_stream, moto

pytestmark = pytest.mark.end_to_end

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_a_request_with_a_trace_context_is_found_again_in_kinesis(tmp_path: Path) -> None:
    with moto(tmp_path) as port:
        client = client_of(port)
        await asyncio.to_thread(make_stream, client, 1)
        sink = (
            f'kind = "kinesis"\nstream = "{STREAM}"\nregion = "eu-central-1"\n'
            f'endpoint = "http://127.0.0.1:{port}"'
        )
        with gateway(tmp_path, sink=sink) as node:
            async with aiohttp.ClientSession() as session:
                for device, headers in (
                    ("traced", {"traceparent": TRACE}),
                    ("keyed", {"traceparent": TRACE, "Idempotency-Key": "once"}),
                    ("garbled", {"traceparent": "00-x"}),
                    ("plain", {}),
                ):
                    url = f"http://127.0.0.1:{node.http}/v1/tenants/acme/devices/{device}/telemetry/s"
                    body = json.dumps(telemetry())
                    named = {**headers, "Content-Type": "application/json"}
                    async with session.post(url, data=body, headers=named) as response:
                        assert response.status == 202, await response.text()
            await asyncio.to_thread(node.wait_until, node.delivered)
            assert await asyncio.to_thread(node.stop) == 0
        users = user_records(await asyncio.to_thread(all_records, client))
    traces = {user["device"]: user.get("trace") for user in users}
    assert traces == {"traced": TRACE, "keyed": TRACE, "garbled": None, "plain": None}
