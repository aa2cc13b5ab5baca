from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import counters
from ingest.counters import ACKNOWLEDGE_S, COMMIT_BYTES, HISTOGRAMS, Histogram
from ingest.outcome import REFUSALS, Outcome


def block_of(tenants: int) -> memoryview[int]:
    return memoryview(bytearray(8 * counters.tenant_start(tenants))).cast("q")


def test_no_two_metrics_share_a_place() -> None:
    places = [counters.offset(family.name, value) for family in counters.COUNTERS for value in family.values]
    for histogram in HISTOGRAMS:
        places.extend(range(histogram.start, histogram.end))
    for tenant in range(2):
        places.extend(counters.tenant_start(tenant) + field for field in range(counters.TENANT_STRIDE))
    assert sorted(places) == list(range(counters.tenant_start(2)))


def test_every_refusal_has_its_counter_in_all_and_for_a_tenant() -> None:
    assert set(counters.REFUSED) == set(counters.TENANT_REFUSED) == set(REFUSALS)
    for outcome in REFUSALS:
        assert counters.offset("messages_refused_total", outcome.name.lower()) == counters.REFUSED[outcome]
        assert counters.TENANT_FIELDS[counters.TENANT_REFUSED[outcome]] == outcome.name.lower()
    assert Outcome.ACCEPTED not in counters.REFUSED


def test_names_are_what_prometheus_asks_for() -> None:
    for family in counters.COUNTERS:
        assert family.name.endswith("_total")
        assert family.help.endswith(".")
        assert bool(family.label) == (family.values != ("",))
    for histogram in HISTOGRAMS:
        assert histogram.name.endswith(("_seconds", "_bytes"))
        assert list(histogram.bounds) == sorted(set(histogram.bounds))


def test_an_unknown_label_is_a_programming_error() -> None:
    with pytest.raises(KeyError):
        counters.offset("tls_reloads_total", "perhaps")


def test_an_observation_is_counted_up_to_its_bound_and_beyond_the_last() -> None:
    histogram = Histogram("size_bytes", "Size.", bounds=(1.0, 2.0), unit=1, start=3)
    block = memoryview(bytearray(8 * 10)).cast("q")
    histogram.observe(block, 1.0)
    histogram.observe(block, 2, count=5)
    histogram.observe(block, 70)
    assert list(histogram.buckets(block)) == [1, 5, 1]
    assert histogram.total(block) == 1 + 10 + 70
    assert block.tolist() == [0, 0, 0, 1, 5, 1, 81, 0, 0, 0]
    assert histogram.end == 7


def test_without_observations_there_is_no_quantile() -> None:
    assert ACKNOWLEDGE_S.quantile(block_of(1), 0.5) is None


def test_what_is_beyond_the_last_bound_is_estimated_as_the_bound() -> None:
    block = block_of(1)
    ACKNOWLEDGE_S.observe(block, 3600.0)
    assert ACKNOWLEDGE_S.quantile(block, 0.99) == ACKNOWLEDGE_S.bounds[-1]


# The first bucket starts at 0, so what is in it is known less well.
BEYOND_THE_FIRST_BUCKET = st.floats(ACKNOWLEDGE_S.bounds[0], 10.0, exclude_min=True)


@given(values=st.lists(BEYOND_THE_FIRST_BUCKET, min_size=1, max_size=200), share=st.sampled_from([0.5, 0.99]))
def test_a_quantile_is_off_by_one_bucket_at_most(values: list[float], share: float) -> None:
    block = block_of(1)
    for value in values:
        ACKNOWLEDGE_S.observe(block, value)
    estimated = ACKNOWLEDGE_S.quantile(block, share)
    assert estimated is not None
    true = sorted(values)[math.ceil(len(values) * share) - 1]
    assert true / 2**0.5 - 1e-9 <= estimated <= true * 2**0.5 + 1e-9


def test_the_sum_is_exact_to_the_unit() -> None:
    block = block_of(1)
    values = [0.00123, 0.5, 2.25]
    for value in values:
        ACKNOWLEDGE_S.observe(block, value)
    assert ACKNOWLEDGE_S.total(block) == pytest.approx(math.fsum(values), abs=3e-6)
    COMMIT_BYTES.observe(block, 4097)
    assert COMMIT_BYTES.total(block) == 4097
