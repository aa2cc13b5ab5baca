"""The body that we make for a PutRecords is the one that botocore would have made, and is what is signed."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import botocore.session
import pytest
from aiobotocore.awsrequest import AioAWSResponse
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.serialize import create_serializer

from ingest.delivery.kinesis.service import Entry, KinesisService, Result

STREAM, REGION = "tele_metry.1", "eu-central-1"
CREDENTIALS = Credentials("test-key", "test-secret")


class Answer:
    async def read(self) -> bytes:
        return b'{"FailedRecordCount":1,"Records":[{"ShardId":"s-0"},{"ErrorCode":"InternalFailure"}]}'


class Caught:
    """The service but for its socket: keeps the requests that it would have sent."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.service = KinesisService(
            stream=STREAM, region=REGION, endpoint=None, deadline_s=5, connections_max=2
        )

    async def open(self) -> None:
        await self.service.open()
        self.service._client.meta.events.register("before-send.kinesis.*", self._answer)

    def _answer(self, request: Any, **_: Any) -> AioAWSResponse:
        self.requests.append(request)
        return AioAWSResponse(request.url, 200, {"content-type": "application/x-amz-json-1.1"}, Answer())


@pytest.fixture
async def caught(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Caught]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CREDENTIALS.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CREDENTIALS.secret_key)
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    made = Caught()
    await made.open()
    yield made
    await made.service.close()


def of_botocore(entries: list[Entry]) -> Any:
    """Return the request that botocore's own serializer makes."""
    model = botocore.session.get_session().get_service_model("kinesis")
    records = [{"PartitionKey": entry.partition_key, "Data": entry.data} for entry in entries]
    return create_serializer(model.resolved_protocol).serialize_to_request(
        {"StreamName": STREAM, "Records": records}, model.operation_model("PutRecords")
    )


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000, 250_000])
async def test_the_body_says_what_botocore_would_say(caught: Caught, size: int) -> None:
    chance = random.Random(size)
    entries = [Entry(f"t/d-{n}", chance.randbytes(size)) for n in range(2)]
    entries[1] = Entry('"\\/é\N{SNOWMAN}', entries[1].data)
    assert await caught.service.put_records(entries) == [
        Result("s-0", None),
        Result(None, "InternalFailure"),
    ]
    [request] = caught.requests
    theirs = of_botocore(entries)
    assert json.loads(request.body) == json.loads(theirs["body"])
    for name, value in theirs["headers"].items():
        assert request.headers[name] in {value, value.encode()}
    assert int(request.headers["Content-Length"]) == len(request.body)


async def test_the_signature_is_of_the_body_that_is_sent(caught: Caught) -> None:
    await caught.service.put_records([Entry("t/d", b"data")])
    [sent] = caught.requests
    headers = {
        name: value.decode() if isinstance(value, bytes) else value for name, value in sent.headers.items()
    }
    claimed = headers["Authorization"]
    signed = claimed.partition("SignedHeaders=")[2].partition(",")[0].split(";")
    again = AWSRequest(
        sent.method, sent.url, {name: headers[name.title()] for name in signed if name != "host"}
    )
    again.data = sent.body
    again.context["timestamp"] = headers["X-Amz-Date"]
    auth = SigV4Auth(CREDENTIALS, "kinesis", REGION)
    signature = auth.signature(auth.string_to_sign(again, auth.canonical_request(again)), again)
    assert claimed.endswith(f"Signature={signature}")


async def test_calls_at_the_same_time_have_their_own_bodies(caught: Caught) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(caught.service.put_records([Entry(f"t/{number}", b"%d" % number)]))
    bodies = [json.loads(request.body)["Records"][0]["PartitionKey"] for request in caught.requests]
    assert sorted(bodies) == sorted(f"t/{number}" for number in range(20))
