"""The file of the sink `local`, from outside: what was delivered, and how to take it away for a while."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import msgspec

BUSY_S: Final = 20.0
LOCK_S: Final = 2.0


class _Payload(msgspec.Struct):
    seq: int = 0


def delivered(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield (tenant, device, seq) in order of arrival, without keeping it all."""
    decoder = msgspec.json.Decoder(_Payload)
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_S)
    try:
        for tenant, device, payload in connection.execute(
            "SELECT tenant, device, payload FROM telemetry ORDER BY rowid"
        ):
            yield tenant, device, decoder.decode(payload).seq
    finally:
        connection.close()


class Outage:
    """While it is entered, nobody else can write into the file: to the node, its sink is away."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        self._connection = sqlite3.connect(self._path, isolation_level=None, timeout=LOCK_S)
        self._connection.execute("BEGIN IMMEDIATE")
        return self

    def __exit__(self, *exception: object) -> None:
        if self._connection is not None:
            self._connection.rollback()
            self._connection.close()
