"""The ledger: what was sent and acknowledged, held against what has arrived."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from pathlib import Path

Arrived = tuple[str, str, int]
"""(record id, device, seq)."""


def arrived_locally(data_dir: Path) -> list[Arrived]:
    """Return what the local sink has, in order of arrival."""
    connection = sqlite3.connect(f"file:{data_dir / 'local.db'}?mode=ro", uri=True)
    try:
        rows = connection.execute("SELECT id, device, payload FROM telemetry ORDER BY rowid").fetchall()
    finally:
        connection.close()
    return [(row[0], row[1], json.loads(row[2])["seq"]) for row in rows]


def check(
    acknowledged: Iterable[tuple[str, int]], sent: Iterable[tuple[str, int]], arrived: list[Arrived]
) -> str:
    """Assert that nothing acknowledged is missing, and order per device; return a summary.

    A message that was sent again after a lost connection is another message to the gateway, and may
    arrive twice with two ids; a record id stands for one message only.
    """
    first: dict[tuple[str, int], int] = {}
    of_id: dict[str, tuple[str, int]] = {}
    twice = 0
    for position, (record, device, seq) in enumerate(arrived):
        if record in of_id:
            assert of_id[record] == (device, seq), f"{record} stands for two messages"
            twice += 1
            continue
        of_id[record] = (device, seq)
        first.setdefault((device, seq), position)
    missing = set(acknowledged) - set(first)
    assert not missing, f"{len(missing)} acknowledged messages are missing, e.g. {sorted(missing)[:5]}"
    unknown = set(first) - set(sent)
    assert not unknown, f"{len(unknown)} arrived that nobody sent, e.g. {sorted(unknown)[:5]}"
    latest: dict[str, int] = {}
    for device, seq in sorted(first, key=first.__getitem__):
        assert seq > latest.get(device, 0), f"{device}: {seq} arrived after {latest[device]}"
        latest[device] = seq
    return f"{len(first)} messages, {twice} records twice with equal ids"
