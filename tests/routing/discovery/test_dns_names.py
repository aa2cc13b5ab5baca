"""Discovery by DNS, from a DNS server."""

from __future__ import annotations

import asyncio

import pytest

from routing.discovery.dns_names import DnsSource, Service, endpoints_of
from routing.discovery.source import DiscoveryError
from routing.gateway.routes_file import Endpoint
from tests.support.dns_server import DnsServer, Mood, dns_server

NAME = "pumps.example"


def source(server: DnsServer, record: str = "A", port: int = 80, deadline_s: float = 2.0) -> DnsSource:
    return DnsSource(NAME, record=record, port=port, nameserver=server.address, deadline_s=deadline_s)


def told(endpoints: tuple[Endpoint, ...]) -> list[tuple[str, int, int]]:
    return [(each.address, each.weight, each.priority) for each in endpoints]


async def test_each_address_of_a_name_is_an_endpoint() -> None:
    async with dns_server() as server:
        server.records[NAME, "A"] = ["10.0.0.2", "10.0.0.1"]
        server.records[NAME, "AAAA"] = ["fd00::1"]
        assert told((await source(server).poll()).endpoints) == [("10.0.0.1:80", 1, 0), ("10.0.0.2:80", 1, 0)]
        assert told((await source(server, "AAAA").poll()).endpoints) == [("[fd00::1]:80", 1, 0)]


async def test_the_order_of_an_answer_is_no_change_and_another_address_is() -> None:
    async with dns_server() as server:
        server.records[NAME, "A"] = ["10.0.0.1", "10.0.0.2"]
        asked = source(server)
        first = await asked.poll()
        server.records[NAME, "A"].reverse()
        assert await asked.poll() == first
        server.records[NAME, "A"] = ["10.0.0.1"]
        assert (await asked.poll()).revision != first.revision


async def test_servers_of_a_service_have_its_ports_weights_and_priorities() -> None:
    async with dns_server() as server:
        server.records[NAME, "SRV"] = [
            "10 60 8001 a.example.",
            "10 20 8002 b.example.",
            "20 0 8003 c.example.",
        ]
        server.records["a.example", "A"] = ["10.0.0.1"]
        server.records["b.example", "A"] = ["10.0.0.2"]
        server.records["b.example", "AAAA"] = ["fd00::2"]
        server.records["c.example", "A"] = ["10.0.0.3"]
        assert told((await source(server, "SRV", port=0).poll()).endpoints) == [
            ("10.0.0.1:8001", 60, 0),
            ("10.0.0.2:8002", 20, 0),
            ("[fd00::2]:8002", 20, 0),
            ("10.0.0.3:8003", 1, 1),
        ]


async def test_a_service_that_is_decidedly_not_there_has_no_servers() -> None:
    """RFC 2782: a target of `.`."""
    async with dns_server() as server:
        server.records[NAME, "SRV"] = ["0 0 0 ."]
        assert (await source(server, "SRV").poll()).endpoints == ()


@pytest.mark.parametrize("kind", ["TXT", None])
async def test_no_such_name_or_record_is_an_answer_there_is_nobody(kind: str | None) -> None:
    async with dns_server() as server:
        if kind is not None:
            server.records[NAME, kind] = ['"other"']
        for record in ("A", "AAAA", "SRV"):
            assert (await source(server, record).poll()).endpoints == ()


async def test_an_answer_too_long_for_udp_is_asked_for_over_tcp() -> None:
    async with dns_server() as server:
        server.records[NAME, "A"] = [f"10.0.1.{number}" for number in range(200)]
        server.mood = Mood.TRUNCATED
        assert len((await source(server).poll()).endpoints) == 200
        assert server.asked[-1].endswith("tcp")


@pytest.mark.parametrize("mood", [Mood.SILENT, Mood.SERVFAIL, Mood.OF_ANOTHER])
async def test_a_server_that_fails_is_an_error_and_not_an_empty_answer(mood: Mood) -> None:
    async with dns_server() as server:
        server.records[NAME, "A"] = ["10.0.0.1"]
        server.mood = mood
        with pytest.raises(DiscoveryError, match=NAME):
            await source(server, deadline_s=0.3).poll()


async def test_nobody_there_is_an_error() -> None:
    async with dns_server() as server:
        gone = source(server, deadline_s=0.3)
    await asyncio.sleep(0)
    with pytest.raises(DiscoveryError):
        await gone.poll()


async def test_more_targets_than_are_taken_are_an_error() -> None:
    async with dns_server() as server:
        server.records[NAME, "SRV"] = [f"0 1 80 s{number}.example." for number in range(65)]
        server.mood = Mood.TRUNCATED
        with pytest.raises(DiscoveryError, match="65 SRV targets"):
            await source(server, "SRV").poll()


def test_weights_keep_their_proportion_and_none_is_nothing() -> None:
    services = [Service(0, 65_535, 1, "a"), Service(0, 6553, 1, "b"), Service(0, 0, 1, "c")]
    addresses = {"a": ["10.0.0.1"], "b": ["10.0.0.2"], "c": ["10.0.0.3"]}
    assert [each.weight for each in endpoints_of(services, addresses)] == [1000, 100, 1]


def test_more_priorities_than_are_taken_are_an_error() -> None:
    services = [Service(number, 1, 1, "a") for number in range(17)]
    with pytest.raises(DiscoveryError, match="17 SRV priorities"):
        endpoints_of(services, {"a": []})


@pytest.mark.parametrize("nameserver", ["ns.example:53", "10.0.0.1", "10.0.0.1:0", ":53"])
def test_a_nameserver_is_an_address_and_a_port(nameserver: str) -> None:
    with pytest.raises(DiscoveryError):
        DnsSource(NAME, record="A", port=80, nameserver=nameserver, deadline_s=1)


def test_addresses_need_a_port() -> None:
    with pytest.raises(DiscoveryError, match="port"):
        DnsSource(NAME, record="A", port=0, nameserver="", deadline_s=1)
