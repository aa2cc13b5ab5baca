"""Clusters are told apart by their names, dots in them or not."""

from __future__ import annotations

import re

import pytest

from routing.traffic.counts import Counts
from routing.traffic.sides import Sides

SIDES = Sides("shop", "v2", ("v1",))


@pytest.mark.parametrize(
    ("cluster", "canary", "baseline"),
    [
        ("cds_egress_shop_v2_http_80", 1, 0),
        ("cds_egress_shop_v2_grpc_80_cart.local", 1, 0),
        ("cds_egress_shop_v1_http2_9001", 0, 1),
        ("cds_egress_shop_v22_http_80", 0, 0),
        ("cds_egress_shop_v2.http_80", 0, 0),
        ("cds_egress_other_v2_http_80", 0, 0),
        ("cds_ingress_shop_v2_http_80", 0, 0),
    ],
)
def test_clusters_belong_to_a_side(cluster: str, canary: int, baseline: int) -> None:
    got = SIDES.counted({cluster: Counts(1)})
    assert (got[0].requests, got[1].requests) == (canary, baseline)
    assert bool(re.fullmatch(SIDES.pattern, cluster)) == bool(canary or baseline)


def test_names_are_known_by_what_comes_before_a_dot() -> None:
    assert (
        Sides("shop", "v2", ("v1", "v.3")).beginnings
        == "(cds_egress_shop_v2_|cds_egress_shop_v1_|cds_egress_shop_v).*"
    )
    assert Sides("shop", "v.3", ()).counted({"cds_egress_shop_v.3_http_80": Counts(1)})[0].requests == 1
