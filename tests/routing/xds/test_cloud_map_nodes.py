"""What Cloud Map is asked for nodes, and what its instances are to them."""

from __future__ import annotations

from pathlib import Path

import pytest

from routing.discovery.source import Found
from routing.gateway.routes_file import Endpoint as Instance
from routing.mesh.compile.proxy import Endpoint
from routing.mesh.model.resources import VirtualNode
from routing.mesh.model.shape import IpPreference
from routing.xds.cloud_map import NO_PORT, asked_of, endpoints_of
from tests.support import mesh_documents as of

MAPPED = {"namespaceName": "shop.local", "serviceName": "cart"}
REGIONS = ("eu-central-1", "eu-west-1")


def node(folder: Path, *ports: int, **members: object) -> VirtualNode:
    listeners = [{"portMapping": {"port": port, "protocol": "http"}} for port in ports]
    spec = {"listeners": listeners, "serviceDiscovery": {"awsCloudMap": {**MAPPED, **members}}}
    document = {"meshName": of.MESH, "virtualNodeName": "cart", "spec": spec}
    return of.snapshot(folder, of.mesh(), document).nodes["cart"]


def test_a_service_is_asked_for_in_each_region(tmp_path: Path) -> None:
    attributes = [{"key": "stage", "value": "live"}, {"key": "color", "value": "red"}]
    asked = asked_of(node(tmp_path, 80, attributes=attributes), None, REGIONS)
    assert [each.region for each in asked] == list(REGIONS)
    assert {each.attributes for each in asked} == {(("color", "red"), ("stage", "live"))}
    assert {(each.namespace, each.service) for each in asked} == {("shop.local", "cart")}


def test_a_node_in_dns_is_not_asked_for(tmp_path: Path) -> None:
    found = of.snapshot(tmp_path, of.mesh(), of.node("cart", 80)).nodes["cart"]
    assert asked_of(found, None, REGIONS) == ()


@pytest.mark.parametrize(
    ("own", "of_mesh", "first"),
    [
        ({}, None, "AWS_INSTANCE_IPV4"),
        ({}, "IPv6_PREFERRED", "AWS_INSTANCE_IPV6"),
        ({"ipPreference": "IPv4_ONLY"}, "IPv6_PREFERRED", "AWS_INSTANCE_IPV4"),
    ],
)
def test_the_node_s_family_counts_before_the_mesh_s(
    tmp_path: Path, own: dict[str, str], of_mesh: IpPreference | None, first: str
) -> None:
    (asked,) = asked_of(node(tmp_path, 80, **own), of_mesh, REGIONS[:1])
    assert asked.families[0] == first


def found(*instances: Instance) -> Found:
    return Found(instances, "1")


@pytest.mark.parametrize(("ports", "expected"), [((80,), 9001), ((80, 81), None)])
def test_the_port_of_an_instance_counts_where_there_is_one_listener(
    tmp_path: Path, ports: tuple[int, ...], expected: int | None
) -> None:
    (made,) = endpoints_of(found(Instance("10.0.0.1:9001")), node(tmp_path, *ports), "eu-west-1")
    assert made == Endpoint("10.0.0.1", expected, region="eu-west-1")


@pytest.mark.parametrize(
    ("zone", "region"),
    [
        ("", "eu-west-1"),
        ("us-east-1a", "us-east-1"),
        ("us-west-2-lax-1a", "us-west-2"),
        ("rack", "eu-west-1"),
    ],
)
def test_the_region_is_that_of_the_zone_or_else_that_which_was_asked(
    tmp_path: Path, zone: str, region: str
) -> None:
    instance = Instance(f"10.0.0.1:{NO_PORT}", weight=0, zone=zone)
    (made,) = endpoints_of(found(instance), node(tmp_path, 80), "eu-west-1")
    assert made == Endpoint("10.0.0.1", None, region=region, zone=zone, weight=1)
