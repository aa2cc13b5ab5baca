from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.delivery.envelope import envelopes
from ingest.delivery.local import rows
from ingest.records import Encoding
from services.feed.decoding import record_of, record_of_row
from tests.support.feeds import group, payload

GOOD = (
    b'{"id":"a","tenant":"t","device":"d","stream":"s","received_at":1,"node":"n",'
    b'"payload":{"ts":1,"metrics":{"m":1}}}'
)


@pytest.mark.parametrize("encoding", [Encoding.JSON, Encoding.RAW])
def test_what_the_sinks_write_is_read_alike(encoding: Encoding) -> None:
    content = [payload(1), payload(2)] if encoding is Encoding.JSON else [b"\x00", b"{}"]
    sent = group(7, content, encoding=encoding)
    of_kinesis = [record_of(text) for _, _, texts in envelopes(sent) for text in texts]
    of_local = [record_of_row((*row[:5], row[6])) for row in rows(sent)]
    assert of_kinesis == of_local
    assert None not in of_kinesis


def test_a_trace_context_is_passed_by() -> None:
    traced = GOOD.replace(b'"payload"', b'"trace":"00-1-2-01","payload"')
    assert record_of(traced) == record_of(GOOD) is not None


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_a_record_or_none(data: bytes) -> None:
    assert record_of(data) is None


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_a_record_with_any_byte_changed_is_a_record_or_none(position: int, byte: int) -> None:
    record_of(GOOD[:position] + bytes([byte]) + GOOD[position + 1 :])
    assert record_of(GOOD[:position]) is None


@pytest.mark.parametrize(
    "text",
    ["{", "{}", '{"ts":0,"metrics":{"m":1}}', '{"ts":1,"metrics":{}}', '{"a":' * 20_000, '{"ts":1,"x":1}'],
)
def test_a_row_that_is_no_telemetry_is_none(text: str) -> None:
    assert record_of_row(("a", "t", "d", "s", 1, text)) is None
