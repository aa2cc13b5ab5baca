"""What Envoy and Prometheus say is read as counts, and nothing twice."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.traffic.counts import Counts
from routing.traffic.exposition import Unreadable, admin_filter, clusters_in, query, reading_in
from routing.traffic.sides import Sides

TEXT = """\
# TYPE envoy_cluster_external_upstream_rq_xx counter
envoy_cluster_external_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="v1"} 7
# TYPE envoy_cluster_retry_upstream_rq_xx counter
envoy_cluster_retry_upstream_rq_xx{envoy_response_code_class="5",envoy_cluster_name="v1"} 7
# TYPE envoy_cluster_upstream_rq_xx counter
envoy_cluster_upstream_rq_xx{envoy_response_code_class="2",envoy_cluster_name="v1"} 7
envoy_cluster_upstream_rq_xx{envoy_response_code_class="5",envoy_cluster_name="v1"} 2
envoy_cluster_upstream_rq_xx{envoy_response_code_class="1",envoy_cluster_name="v1"} 4
# TYPE envoy_cluster_local_upstream_rq_xx counter
envoy_cluster_local_upstream_rq_xx{envoy_response_code_class="4",envoy_cluster_name="v1_cart"} 3
# TYPE envoy_cluster_upstream_rq_time histogram
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="v1",le="0.5"} 3
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="v1",le="+Inf"} 9
envoy_cluster_upstream_rq_time_sum{envoy_cluster_name="v1"} 63.15
envoy_cluster_upstream_rq_time_count{envoy_cluster_name="v1"} 9
"""


def test_an_exposition_is_read() -> None:
    made = clusters_in(TEXT)
    assert made == {"v1": Counts(9, 2, {0.5: 3, math.inf: 9}), "v1_cart.local": Counts(3)}


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("36383_upstream_rq_xx", 'mesh="shop",callee="v2.x",protocol="http",'),
        ("x_http_36383_upstream_rq_xx", ""),
    ],
)
def test_a_name_with_a_dot_is_put_together_again(name: str, labels: str) -> None:
    labels += 'envoy_response_code_class="2",envoy_cluster_name="cds_egress_shop_v2"'
    made = clusters_in(f"envoy_cluster_{name}{{{labels}}} 35\n")
    assert Sides("shop", "v2.x", ("v2",)).counted(made) == (Counts(35), Counts())


def test_of_grpc_its_own_statuses_count() -> None:
    name = "cds_egress_shop_v1_grpc_80"
    series = "".join(
        f"envoy_cluster_{series} {value}\n"
        for series, value in {
            f'upstream_rq_xx{{envoy_response_code_class="2",envoy_cluster_name="{name}"}}': 100,
            f'grpc_0{{envoy_cluster_name="{name}"}}': 90,
            f'grpc_5{{envoy_cluster_name="{name}"}}': 6,
            f'grpc_14{{envoy_cluster_name="{name}"}}': 4,
            f'grpc_total{{envoy_cluster_name="{name}"}}': 100,
            f'local_grpc_13{{envoy_cluster_name="{name}_cart"}}': 3,
        }.items()
    )
    assert clusters_in(series) == {name: Counts(100, 4), f"{name}_cart.local": Counts(3, 3)}


@given(cut=st.integers(0, len(TEXT)))
def test_a_text_that_is_cut_is_read_or_refused(cut: int) -> None:
    try:
        made = clusters_in(TEXT[:cut])
    except Unreadable:
        return
    assert all(counts.requests <= 9 for counts in made.values())


def answer(*results: tuple[dict[str, str], str]) -> bytes:
    vector: list[dict[str, Any]] = [{"metric": metric, "value": [1.5, value]} for metric, value in results]
    return json.dumps({"status": "success", "data": {"resultType": "vector", "result": vector}}).encode()


def test_an_answer_of_prometheus_is_read_by_proxy() -> None:
    xx = {"__name__": "envoy_cluster_upstream_rq_xx", "job": "envoy", "envoy_cluster_name": "v1"}
    one, two = xx | {"instance": "a:1"}, xx | {"instance": "b:1"}
    got = reading_in(
        answer(
            (one | {"envoy_response_code_class": "2"}, "5"),
            (one | {"envoy_response_code_class": "5"}, "1"),
            (two | {"envoy_response_code_class": "2"}, "NaN"),
        )
    )
    assert got == {"envoy a:1": {"v1": Counts(6, 1)}, "envoy b:1": {}}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"<html>", "no answer of Prometheus"),
        (b'{"status":"error","error":"bad query"}', "Prometheus says: bad query"),
        (answer(({"__name__": "envoy_cluster_upstream_rq_xx"}, "x")), "'x' is no number"),
    ],
)
def test_what_is_no_answer_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        reading_in(body)


def test_only_the_clusters_of_both_sides_are_asked_for() -> None:
    sides = Sides("shop", "v2", ("v1",))
    wanted = re.compile(admin_filter(sides))
    assert wanted.search("cluster.cds_egress_shop_v2_http_80.upstream_rq_5xx")
    assert wanted.search("cluster.cds_egress_shop_v1_grpc_80_cart.local.grpc.14")
    assert not wanted.search("cluster.cds_egress_shop_v1_grpc_80.grpc.total")
    assert not wanted.search("cluster.cds_egress_shop_v3_http_80.upstream_rq_5xx")
    assert 'envoy_cluster_name=~"(cds_egress_shop_v2_|cds_egress_shop_v1_).*"' in query(sides)
