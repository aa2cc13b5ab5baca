"""The last good copy holds, whatever discovery does meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from routing.discovery import sources
from routing.discovery.cloud_map import CloudMapSource
from routing.discovery.dns_names import DnsSource
from routing.discovery.file import FileSource
from routing.discovery.source import DiscoveryError, Found
from routing.discovery.static import StaticSource
from routing.discovery.watcher import SLOWER_MAX, Watcher, pause_s
from routing.gateway.routes_file import Discovery, Endpoint


def found(*addresses: str) -> Found:
    return Found(tuple(Endpoint(address=address) for address in addresses), ",".join(addresses))


class Scripted:
    """A source that answers as it is told; None is no answer at all."""

    def __init__(self, *answers: Found | DiscoveryError | None) -> None:
        self._answers = list(answers)
        self.closed = False

    async def poll(self) -> Found:
        answer = self._answers.pop(0)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, DiscoveryError):
            raise answer
        assert answer is not None
        return answer

    async def close(self) -> None:
        self.closed = True


class Heard:
    def __init__(self) -> None:
        self.told: list[str] = []

    def discovery_failed(self, upstream: str, why: str, *, first: bool) -> None:
        self.told.append(f"{upstream} failed{' first' if first else ''}: {why}")

    def discovery_recovered(self, upstream: str) -> None:
        self.told.append(f"{upstream} recovered")


def watcher(source: Scripted, taken: list[Found], heard: Heard) -> Watcher:
    return Watcher(
        "pumps", source, poll_s=1, deadline_s=0.05, found=taken.append, heard=heard, random=lambda: 0.5
    )


async def test_only_what_is_new_is_handed_on_and_failures_hand_on_nothing() -> None:
    taken: list[Found] = []
    heard = Heard()
    one, two = found("a:1"), found("a:1", "b:1")
    each = watcher(Scripted(one, one, DiscoveryError("throttled"), None, one, two), taken, heard)
    for failures in (0, 0, 1, 2, 0, 0):
        await each.poll()
        assert each.failures == failures
    assert taken == [one, two]
    assert heard.told == [
        "pumps failed first: throttled",
        "pumps failed: no answer in 0.05 s",
        "pumps recovered",
    ]


async def test_an_empty_answer_is_handed_on() -> None:
    taken: list[Found] = []
    each = watcher(Scripted(found("a:1"), found()), taken, Heard())
    await each.poll()
    await each.poll()
    assert taken[-1].endpoints == ()


async def test_it_polls_at_once_and_closes_its_source_in_the_end() -> None:
    taken: list[Found] = []
    source = Scripted(found("a:1"))
    async with asyncio.TaskGroup() as group:
        task = group.create_task(watcher(source, taken, Heard()).run())
        while not taken:
            await asyncio.sleep(0)
        task.cancel()
    assert source.closed


@pytest.mark.parametrize(
    ("failures", "periods"), [(0, 1), (1, 1), (2, 2), (3, 4), (4, 8), (9, 8), (10_000, 8)]
)
def test_who_fails_is_asked_less_often_up_to_a_bound(failures: int, periods: int) -> None:
    assert pause_s(failures, 2.0, lambda: 0.5) == 2.0 * periods
    assert pause_s(failures, 2.0, lambda: 0.0) == pytest.approx(1.8 * periods)
    assert periods <= SLOWER_MAX


def test_each_kind_of_discovery_has_its_source(tmp_path: Path) -> None:
    assert isinstance(sources.source_of(Discovery(kind="static")), StaticSource)
    assert isinstance(sources.source_of(Discovery(kind="file", file=str(tmp_path / "e"))), FileSource)
    dns = Discovery(kind="dns", name="a.example", port=1, nameserver="10.0.0.1:53")
    assert isinstance(sources.source_of(dns), DnsSource)
    cloud_map = Discovery(kind="cloud_map", namespace="n", service="s", region="r")
    assert isinstance(sources.source_of(cloud_map), CloudMapSource)


@pytest.mark.parametrize(
    "discovery",
    [
        Discovery(kind="file"),
        Discovery(kind="dns", port=1),
        Discovery(kind="cloud_map", namespace="n", service="s"),
        Discovery(kind="static", endpoints=[Endpoint(address="nowhere")]),
    ],
)
def test_what_a_source_needs_and_has_not_is_an_error(discovery: Discovery) -> None:
    with pytest.raises(DiscoveryError):
        sources.source_of(discovery)
