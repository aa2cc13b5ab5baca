"""Envoy's statistics of clusters, from the text of its admin port or from an answer of Prometheus.

Answers count as callers got them: what was tried again and then went well is no failure, a time-out is one.
Of a callee that speaks gRPC, statuses of gRPC count.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from routing.traffic.counts import Clusters, Counts, Reading
from routing.traffic.sides import Sides

SERIES: Final = re.compile(
    r"envoy_cluster_(?:(.+)_)?(?:upstream_rq_(?P<kind>xx|time_bucket)|grpc_(?P<status>[0-9]+))(?:_total)?"
)
"""Series of a cluster; the parser adds `_total` to the names of counters, as OpenMetrics has them."""
APART: Final = re.compile(r"(?:^|_)(?:external|internal|canary|retry|zone_.*)$")
"""What Envoy counts once more under these names."""
ANSWERS: Final = {"2", "3", "4", "5"}
FAILED: Final = {"5"}
GRPC: Final = re.compile(r"cds_egress_.+_grpc_[0-9]+([._].*)?")
GRPC_FAILED: Final = {"2", "4", "12", "13", "14", "15"}
"""UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS: what a callee causes."""
Sample = tuple[str, Mapping[str, str], float]


class Unreadable(Exception):
    """It is not what it was taken for."""


def admin_filter(sides: Sides) -> str:
    """Return which statistics are asked of an admin port, as a regular expression of their names."""
    return f"^cluster\\.{sides.pattern}\\.(upstream_rq_(.xx|time)|grpc\\.[0-9]+)$"


def query(sides: Sides) -> str:
    """Return what is asked of Prometheus."""
    return (
        '{__name__=~"envoy_cluster_(.+_)?(upstream_rq_(xx|time_bucket)|grpc_[0-9]+)",'
        f'envoy_cluster_name=~"{sides.beginnings}"}}'
    )


def clusters_in(text: str) -> Clusters:
    """Return the counts of an exposition; raises Unreadable."""
    try:
        families = list(text_string_to_metric_families(text))
    except ValueError as error:
        raise Unreadable(f"these are no statistics: {error}") from error
    return _clusters((each.name, each.labels, each.value) for family in families for each in family.samples)


class _Series(msgspec.Struct):
    metric: dict[str, str]
    value: tuple[float, str]


class _Vector(msgspec.Struct):
    result: list[_Series]


class _Answer(msgspec.Struct):
    status: str
    data: _Vector | None = None
    error: str = ""


def vector_in(answer: bytes) -> list[tuple[dict[str, str], float]]:
    """Return the labels and values of an answer of Prometheus to an instant query; raises Unreadable."""
    try:
        got = msgspec.json.decode(answer, type=_Answer)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Unreadable(f"this is no answer of Prometheus: {error}") from error
    if got.data is None:
        raise Unreadable(f"Prometheus says: {got.error or got.status}")
    return [(each.metric, _number(each.value[1])) for each in got.data.result]


def reading_in(answer: bytes) -> Reading:
    """Return the counts of an answer to an instant query, by job and instance; raises Unreadable."""
    proxies: dict[str, list[Sample]] = {}
    for labels, value in vector_in(answer):
        of = f"{labels.get('job', '')} {labels.get('instance', '')}"
        proxies.setdefault(of, []).append((labels.get("__name__", ""), labels, value))
    return {of: _clusters(samples) for of, samples in proxies.items()}


def _clusters(samples: Iterable[Sample]) -> Clusters:
    answers: dict[str, dict[str, int]] = {}
    statuses: dict[str, dict[str, int]] = {}
    within: dict[str, dict[float, int]] = {}
    for name, labels, value in samples:
        series = SERIES.fullmatch(name)
        if series is None or APART.search(series[1] or "") or not math.isfinite(value):
            continue
        cluster = _cluster(labels, series[1])
        if series["status"]:
            statuses.setdefault(cluster, {})[series["status"]] = int(value)
        elif series["kind"] == "xx":
            if (answer := labels.get("envoy_response_code_class", "")) in ANSWERS:
                answers.setdefault(cluster, {})[answer] = int(value)
        else:
            within.setdefault(cluster, {})[_number(labels.get("le", ""))] = int(value)
    made = {}
    for cluster in answers.keys() | statuses.keys() | within.keys():
        counted, failed = answers.get(cluster, {}), FAILED
        if GRPC.fullmatch(cluster):
            counted, failed = statuses.get(cluster, {}), GRPC_FAILED
        failures = sum(count for status, count in counted.items() if status in failed)
        made[cluster] = Counts(sum(counted.values()), failures, within.get(cluster, {}))
    return made


def _cluster(labels: Mapping[str, str], rest: str | None) -> str:
    """Return the name of a cluster: Envoy makes a label of it up to a dot, and leaves the rest in the name.

    A proxy that has labels for the mesh, the callee and the protocol leaves less: there, these say it.
    """
    own = labels.get("envoy_cluster_name", "")
    whole = f"{own}.{rest}" if rest else own
    mesh, callee, protocol = (labels.get(each, "") for each in ("mesh", "callee", "protocol"))
    if own.startswith("cds_egress_") and mesh and callee and protocol:
        return f"cds_egress_{mesh}_{callee}_{protocol}_0_{whole}"
    return whole


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise Unreadable(f"{text[:40]!r} is no number") from error
