"""A Kinesis that takes everything at once: ListShards and PutRecords, over four shards, nothing kept.

python -m bench.side_by_side.kinesis_stub PORT
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from typing import Final

import msgspec
from aiohttp import web

SHARDS: Final = 4
STEP: Final = (1 << 128) // SHARDS


class Record(msgspec.Struct):
    """One record of a PutRecords; its data is not looked at."""

    PartitionKey: str


class PutRecords(msgspec.Struct):
    """The body of a PutRecords, as far as it matters here."""

    Records: list[Record]


_DECODE: Final = msgspec.json.Decoder(PutRecords)


def shards() -> bytes:
    """Return the answer to ListShards."""
    described = [
        {
            "ShardId": f"shardId-{number:012d}",
            "HashKeyRange": {
                "StartingHashKey": str(number * STEP),
                "EndingHashKey": str((number + 1) * STEP - 1),
            },
            "SequenceNumberRange": {"StartingSequenceNumber": "1"},
        }
        for number in range(SHARDS)
    ]
    return msgspec.json.encode({"Shards": described})


def results(body: bytes) -> bytes:
    """Return the answer to a PutRecords: everything is taken."""
    taken = []
    for record in _DECODE.decode(body).Records:
        digest = hashlib.md5(record.PartitionKey.encode(), usedforsecurity=False).digest()
        taken.append({"ShardId": f"shardId-{digest[0] * SHARDS // 256:012d}", "SequenceNumber": "1"})
    return msgspec.json.encode({"FailedRecordCount": 0, "Records": taken})


async def handle(request: web.BaseRequest) -> web.Response:
    """Answer one call."""
    body = await request.read()
    answer = shards() if request.headers["X-Amz-Target"].endswith("ListShards") else results(body)
    return web.Response(body=answer, content_type="application/x-amz-json-1.1")


async def main(port: int) -> None:
    """Serve until killed."""
    server = web.Server(handle, access_log=None)
    runner = web.ServerRunner(server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
