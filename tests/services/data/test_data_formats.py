from __future__ import annotations

import pytest

from services.data.formats import ARROW, JSON, NDJSON, Format, wanted
from services.data.resources import every_ms, value_of
from services.data.rows import point_rows
from services.feed.decoding import record_of_row
from services.web.refusal import Refused


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", Format.JSON),
        ("*/*", Format.JSON),
        ("application/*;q=0.1", Format.JSON),
        (JSON, Format.JSON),
        ("application/vnd.headworks.v2+json", Format.JSON),
        (NDJSON, Format.NDJSON),
        (f"{ARROW}; q=0.5, {NDJSON};q=0.4, */*;q=0.1", Format.ARROW),
        (f"text/html, {NDJSON.upper()}", Format.NDJSON),
        (f"{ARROW};q=0, {JSON};q=0.001", Format.JSON),
        (f"{ARROW};q=x, {NDJSON};v=1", Format.NDJSON),
    ],
)
def test_the_format_that_is_liked_best_is_taken(accept: str, expected: Format) -> None:
    assert wanted(accept) is expected


@pytest.mark.parametrize("accept", ["text/csv", f"{JSON};q=0", ","])
def test_what_there_is_not_is_refused(accept: str) -> None:
    with pytest.raises(Refused) as refused:
        wanted(accept)
    assert refused.value.status == 406


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1ms", 1), ("15s", 15_000), ("5m", 300_000), ("2h", 7_200_000), ("1d", 86_400_000)],
)
def test_the_length_of_a_bucket_has_a_unit(text: str, expected: int) -> None:
    assert every_ms(text) == expected


def test_a_metric_is_a_row_with_its_value_in_the_column_of_its_type() -> None:
    payload = '{"ts": 7, "metrics": {"n": 1, "b": false, "t": ""}}'
    records = [
        record_of_row(("a", "acme", "pump-1", "main", 9, payload)),
        record_of_row(("b", "acme", "pump-1", "raw", 9, "AP8=")),
    ]
    rows = point_rows([each for each in records if each is not None], 41)
    assert [(row.seq, row.metric, row.number, row.boolean, row.text) for row in rows] == [
        (41, "n", 1.0, None, None),
        (41, "b", None, False, None),
        (41, "t", None, None, ""),
    ]
    assert [value_of(row.number, row.boolean, row.text) for row in rows] == [1.0, False, ""]
