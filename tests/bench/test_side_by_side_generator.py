"""The generator against a gateway: each thing that it can do, for a moment."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench.side_by_side import measure, servers
from bench.side_by_side.cases import Case, Cores, chosen
from bench.side_by_side.contenders import Place, headworks

CORES = Cores("0", ("0",))
LOADS = ["mqtt-64", "tls-1", "http-100", "http-1", "websocket-64", "websocket-64-in-one"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("side")
    measure.build(made)
    servers.pki(made)
    return made


def small(name: str) -> Case:
    case = next(case for case in chosen([name]) if case.name == name)
    return msgspec.structs.replace(case, connections=4, devices=8)


def figures_of(case: Case, folder: Path) -> dict[str, float]:
    with headworks(Place(folder, CORES.server, case.tls, 1, None), compiled=False) as server:
        return measure.measured(server, folder / "load", case, CORES, pki=folder / "pki", seconds=0.5)


@pytest.mark.parametrize("name", LOADS)
def test_messages_are_acknowledged(name: str, folder: Path) -> None:
    run = figures_of(small(name), folder)
    assert run["per_s"] > 100
    assert 0 < run["p50_ms"] <= run["p99_ms"]
    assert run["cpu_us"] > 0


@pytest.mark.parametrize(("name", "resumed"), [("tls-new", 0.0), ("tls-resumed", 1.0)])
def test_connections_are_resumed_where_they_are_meant_to_be(name: str, resumed: float, folder: Path) -> None:
    run = figures_of(small(name), folder)
    assert run["resumed"] == resumed
    assert run["per_s"] > 10


@pytest.mark.parametrize("name", ["idle", "tls-idle"])
def test_an_idle_connection_takes_memory(name: str, folder: Path) -> None:
    case = msgspec.structs.replace(small(name), connections=500)
    assert 100 < figures_of(case, folder)["connection_bytes"] < 200_000


def test_two_generators_share_the_connections_and_have_devices_of_their_own(folder: Path) -> None:
    case = small("mqtt-64")
    with headworks(Place(folder, CORES.server, case.tls, 2, None), compiled=False) as server:
        assert len(server.pids) == 2
        cores = Cores("0", ("0", "0"))
        run = measure.measured(server, folder / "load", case, cores, pki=folder / "pki", seconds=0.5)
    assert run["per_s"] > 100


def test_a_generator_ends_after_its_messages_or_with_its_input_and_keeps_to_its_rate(folder: Path) -> None:
    case = small("mqtt-64")
    with headworks(Place(folder, CORES.server, case.tls, 1, None), compiled=False) as server:
        given = measure.options(case, server, pki=folder / "pki", seconds=0, share=0, shares=1)
        with measure.Generator(folder / "load", "0", [*given, "messages=1000"]) as generator:
            assert 1000 <= generator.ended().all < 2000
        paced = [*given, "per_s=1000", "warm_up_s=0", "window=1"]
        with measure.Generator(folder / "load", "0", paced) as generator:
            generator.began()
            assert 0 <= generator.stop().all <= 1000


def test_what_is_delivered_is_counted_by_messages_and_by_records(folder: Path) -> None:
    case = small("kinesis-64")
    with (
        servers.kinesis(folder) as stub,
        headworks(Place(folder, CORES.server, case.tls, 1, stub), compiled=False) as server,
    ):
        run = measure.measured(server, folder / "load", case, CORES, pki=folder / "pki", seconds=1.5)
    assert run["delivered_per_s"] > 100
    assert 0 < run["records_a_message"] < 0.5
