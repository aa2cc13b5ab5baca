"""The public library is the oracle, in both directions."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import pytest
from aws_kinesis_agg.aggregator import RecordAggregator
from aws_kinesis_agg.deaggregator import deaggregate_records
from hypothesis import given
from hypothesis import strategies as st

from ingest.delivery.kinesis.aggregation import MAGIC, aggregate
from services.feed.kinesis.deaggregation import user_records

PARTS = st.lists(
    st.tuples(st.text("abc/", min_size=1, max_size=300), st.lists(st.binary(max_size=300), min_size=1)),
    min_size=1,
    max_size=5,
)


def oracle(data: bytes) -> list[bytes]:
    raw = {
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "approximateArrivalTimestamp": 0,
            "data": base64.b64encode(data).decode(),
            "partitionKey": "k",
            "sequenceNumber": "1",
        }
    }
    return [base64.b64decode(user["kinesis"]["data"]) for user in deaggregate_records([raw])]


@given(PARTS)
def test_what_the_sink_aggregates_is_found_again(parts: list[tuple[str, list[bytes]]]) -> None:
    data = aggregate(parts)
    assert user_records(data) == [each for _, records in parts for each in records] == oracle(data)


@given(st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=9), st.booleans())
def test_what_others_aggregate_is_found_too(records: list[bytes], explicit: bool) -> None:
    aggregator: Any = RecordAggregator()
    for number, data in enumerate(records):
        aggregator.add_user_record(f"key-{number % 3}", data, str(number) if explicit else None)
    assert user_records(aggregator.clear_and_get().get_contents()[2]) == records


@given(st.binary(max_size=200))
def test_any_bytes_with_a_right_checksum_are_a_message_or_one_record(message: bytes) -> None:
    data = MAGIC + message + hashlib.md5(message, usedforsecurity=False).digest()
    found = user_records(data)
    assert found == [data] or sum(map(len, found)) <= len(message)


@pytest.mark.parametrize("at", range(0, 70, 3))
def test_a_wrong_checksum_makes_it_a_record_as_it_is(at: int) -> None:
    data = bytearray(aggregate([("acme/pump-1", [b"one" * 9, b"two" * 5])]))
    data[at % len(data)] ^= 1
    assert user_records(bytes(data)) == [bytes(data)]


@pytest.mark.parametrize("data", [b"", b"{}", MAGIC, MAGIC + b"\0" * 15])
def test_what_is_not_aggregated_is_one_record(data: bytes) -> None:
    assert user_records(data) == [data]
