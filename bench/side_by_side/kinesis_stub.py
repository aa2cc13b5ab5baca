"""A Kinesis that takes everything at once: ListShards and PutRecords, over four shards, nothing kept.

python -m bench.side_by_side.kinesis_stub PORT TLS_PORT PKI_FOLDER

`GET /taken` says how many calls and records there were.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
import sys
from pathlib import Path
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


class Stub:
    """Answers, and counts."""

    def __init__(self) -> None:
        self._calls = self._records = 0

    def _results(self, body: bytes) -> bytes:
        """Return the answer to a PutRecords: everything is taken."""
        taken = []
        for record in _DECODE.decode(body).Records:
            digest = hashlib.md5(record.PartitionKey.encode(), usedforsecurity=False).digest()
            taken.append({"ShardId": f"shardId-{digest[0] * SHARDS // 256:012d}", "SequenceNumber": "1"})
        self._calls += 1
        self._records += len(taken)
        return msgspec.json.encode({"FailedRecordCount": 0, "Records": taken})

    async def handle(self, request: web.BaseRequest) -> web.Response:
        """Answer one call."""
        body = await request.read()
        if request.method == "GET":
            answer = msgspec.json.encode({"calls": self._calls, "records": self._records})
        elif request.headers["X-Amz-Target"].endswith("ListShards"):
            answer = shards()
        else:
            answer = self._results(body)
        return web.Response(body=answer, content_type="application/x-amz-json-1.1")


async def main(port: int, tls_port: int, pki: Path) -> None:
    """Serve until killed."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(pki / "server.crt", pki / "server.key")
    server = web.Server(Stub().handle, access_log=None)
    runner = web.ServerRunner(server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    await web.TCPSite(runner, "127.0.0.1", tls_port, ssl_context=tls).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
