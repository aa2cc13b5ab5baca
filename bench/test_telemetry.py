"""Decoding and validating telemetry: one measurement, and a list of 100."""

from __future__ import annotations

from typing import Any

import pytest

from bench import corpus
from ingest.records import Encoding
from protocols.telemetry import decode, decode_one_json

ENCODINGS = [Encoding.JSON, Encoding.MSGPACK, Encoding.JSON_LIST, Encoding.MSGPACK_LIST]


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: encoding.name)
def test_decode(benchmark: Any, encoding: Encoding) -> None:
    [payload] = corpus.payloads(1, encoding)
    form, count = benchmark(decode, payload, corpus.LIST_RECORDS)
    assert form == encoding
    assert count in {1, corpus.LIST_RECORDS}


def test_decode_one_json(benchmark: Any) -> None:
    [payload] = corpus.payloads(1, Encoding.JSON)
    assert benchmark(decode_one_json, payload).seq == 10_000
