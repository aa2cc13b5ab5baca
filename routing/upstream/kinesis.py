"""A Kinesis stream as an upstream: the body becomes one record, as it is.

`Call.hash_key` is the partition key: the gateway gives tenant/device, or the principal where there is no
device, so that a device's records stay in order. The answer is `202 {"sequence_number", "shard_id"}`.
"""

from __future__ import annotations

import uuid
from typing import Final

import msgspec
from multidict import CIMultiDict, CIMultiDictProxy

from routing.aws import AwsClient
from routing.upstream.call import Answer, Call, Reason, UpstreamError, WholeBody
from routing.upstream.service import Ask

RECORD_BYTES_MAX: Final = 1 << 20
"""Of data and partition key together, as streams have it that were not set to more."""
KEY_CHARACTERS_MAX: Final = 256


def asks(stream: str) -> Ask:
    """Return what puts the body of a call into `stream`."""

    async def ask(client: AwsClient, call: Call, timeout_s: float) -> Answer:
        key = call.hash_key[:KEY_CHARACTERS_MAX] or uuid.uuid4().hex
        if len(call.body) + len(key.encode()) > RECORD_BYTES_MAX:
            raise UpstreamError(Reason.TOO_LARGE, f"a record has at most {RECORD_BYTES_MAX} bytes")
        answer = await client.call(
            "put_record", deadline_s=timeout_s, StreamName=stream, Data=call.body, PartitionKey=key
        )
        try:
            body = {"sequence_number": answer["SequenceNumber"], "shard_id": answer["ShardId"]}
        except KeyError as error:
            raise UpstreamError(
                Reason.BAD_ANSWER, "the stream's answer says nothing of the record"
            ) from error
        return Answer(
            status=202,
            headers=CIMultiDictProxy(CIMultiDict({"Content-Type": "application/json"})),
            endpoint=stream,
            body=WholeBody(msgspec.json.encode(body)),
        )

    return ask
