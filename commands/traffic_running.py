"""A shift as it is asked for: where its route is kept, where statistics are read, and running it."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Coroutine, Iterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
from rich.console import Console

from commands import traffic_screen as screen
from commands.common import REFUSED, USAGE, fail
from routing.aws import AwsClient
from routing.traffic import folder, keeping
from routing.traffic import route as routes
from routing.traffic.folder import FolderKeeping
from routing.traffic.judgement import Terms
from routing.traffic.keeping import ApiKeeping, Keeping, Kept, Missing, Unavailable
from routing.traffic.outcome import Refused, Tell
from routing.traffic.plan import BEFORE, Plan, PlanError, planned
from routing.traffic.record import Head, Record, State
from routing.traffic.route import RouteName
from routing.traffic.running import Runner, claim, resumed
from routing.traffic.shift import Pace, Shift
from routing.traffic.sides import Sides
from routing.traffic.statistics import Admins, Prometheus, Statistics, Unwatched
from runtime import clock

STOPPED: Final = 3
"""The exit code of a shift that came to no end, or that cannot be begun as things are."""
CODES: Final = {State.PROMOTED: 0, State.ROLLED_BACK: REFUSED}
NAME_MAX: Final = 60


class Place(msgspec.Struct, frozen=True):
    """Where a route is kept: a folder, or an API and the region that calls are signed for."""

    endpoint: str
    region: str
    folder: Path | None


class Source(msgspec.Struct, frozen=True):
    """Where statistics are read; nowhere, if a shift is not watched."""

    prometheus: str
    admins: tuple[str, ...]


class Wanted(msgspec.Struct, frozen=True):
    """A new shift."""

    to: str
    away: tuple[str, ...]
    steps: tuple[int, ...]
    pace: Pace
    terms: Terms | None


async def run_shift(
    name: RouteName, place: Place, source: Source, wanted: Wanted | None, *, dry_run: bool, as_json: bool
) -> int:
    """Run a new shift, or go on with one that is stalled where nothing is `wanted`; return the exit code."""
    async with opened(name, place) as kept_by, aiohttp.ClientSession() as session:
        kept = await kept_by.read()
        record = _again(kept) if wanted is None else _begun(kept, wanted)
        _check(kept, record, source)
        sides = _sides(name, kept, record.plan)
        statistics = _statistics(source, session, sides) if record.terms is not None else Unwatched()
        if dry_run:
            await _show(record, kept, statistics, kept_by)
            return 0
        await claim(kept_by, record, clock.unix_s, resumed=wanted is None)
        shift = Shift(record.plan, record.pace, record.terms, sides, step=record.head.step)
        with _telling(record, as_json=as_json) as tell:
            runner = Runner(
                kept_by,
                statistics,
                unix_s=clock.unix_s,
                monotonic_s=clock.monotonic_s,
                tell=tell,
                ending=_ending(),
            )
            return CODES.get(await runner.run(record, shift), STOPPED)


def answered(doing: Coroutine[Any, Any, int]) -> int:
    """Return the exit code of what is done, or exit with why it cannot be."""
    try:
        return asyncio.run(doing)
    except (PlanError, Missing) as error:
        fail(str(error), USAGE)
    except (Refused, Unavailable) as error:
        fail(str(error), STOPPED)


@contextlib.asynccontextmanager
async def opened(name: RouteName, place: Place) -> AsyncIterator[Keeping]:
    """Open what keeps a route."""
    if place.folder is not None:
        yield FolderKeeping(place.folder, name)
        return
    async with _api(place) as client:
        yield ApiKeeping(client, name, place.endpoint)


async def names_in(place: Place) -> list[RouteName]:
    """Return the routes that are kept."""
    if place.folder is not None:
        return folder.names_in(place.folder)
    async with _api(place) as client:
        return await keeping.names_in(client, place.endpoint)


@contextlib.asynccontextmanager
async def _api(place: Place) -> AsyncIterator[AwsClient]:
    if not place.endpoint:
        fail("say where the route is kept: --endpoint-url URL, or --place DIR", USAGE)
    client = AwsClient("appmesh", region=place.region, endpoint=place.endpoint, connections_max=2)
    try:
        yield client
    finally:
        await client.close()


def new_id() -> str:
    """Return what no other shift is called."""
    return secrets.token_hex(4)


def who() -> str:
    """Return who does this, as others will read it."""
    return f"{getpass.getuser()}@{socket.gethostname()}"[:NAME_MAX] + f" {os.getpid()}"


def _again(kept: Kept) -> Record:
    return resumed(kept, new_id(), who(), clock.unix_s())


def _begun(kept: Kept, wanted: Wanted) -> Record:
    nodes, weights = routes.nodes(kept.spec), routes.weights(kept.spec)
    plan = planned(nodes, weights, to=wanted.to, away=wanted.away, steps=wanted.steps)
    now_s = round(clock.unix_s(), 3)
    head = Head(new_id(), who(), State.RUNNING, BEFORE, now_s, now_s, routes.digest(kept.spec))
    return Record(head, plan, wanted.pace, wanted.terms)


def _check(kept: Kept, record: Record, source: Source) -> None:
    """Refuse a shift that could never be judged."""
    terms, given = record.terms, bool(source.prometheus or source.admins)
    if (terms is not None) != given:
        fail("it is watched: --prometheus URL or --envoy HOST:PORT" if terms else "it is --unwatched", USAGE)
    if terms is None:
        return
    if (kind := routes.kind(kept.spec)) not in routes.JUDGED:
        fail(
            f"failures of a {kind} are not in the statistics of proxies: --unwatched shifts by the clock",
            USAGE,
        )
    compared = terms.worse_max is not None or terms.p99_ratio_max is not None
    if compared and not any(record.plan.weights(0)[place] for place in record.plan.away):
        fail("the first step leaves nothing to compare with: an earlier step, or --no-compare", USAGE)


def _sides(name: RouteName, kept: Kept, plan: Plan) -> Sides:
    nodes = routes.nodes(kept.spec)
    return Sides(name.mesh, nodes[plan.to], tuple(nodes[place] for place in plan.away))


def _statistics(source: Source, session: aiohttp.ClientSession, sides: Sides) -> Statistics:
    if source.prometheus:
        return Prometheus(session, source.prometheus, sides)
    return Admins(session, source.admins, sides)


async def _show(record: Record, kept: Kept, statistics: Statistics, kept_by: Keeping) -> None:
    """Print what a shift would do, and whether statistics can be read."""
    console = Console()
    lines = [
        f"the route is kept by {kept_by.where}",
        *screen.plan_lines(record.plan, routes.nodes(kept.spec)),
    ]
    lines += [*screen.terms_lines(record.terms, record.pace), *statistics.asked()]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    reading = await statistics.read(lambda why: console.print(f"not readable: {why}", markup=False))
    console.print(f"{len(reading)} proxies answer; nothing is changed", highlight=False)


@contextlib.contextmanager
def _telling(record: Record, *, as_json: bool) -> Iterator[Tell]:
    if as_json:
        yield screen.as_json
        return
    console = Console()
    steps = len(record.plan.steps)
    if not console.is_terminal:
        yield screen.on_screen(console, None, steps)
        return
    with console.status("") as status:
        yield screen.on_screen(console, status, steps)


def _ending() -> asyncio.Event:
    ending = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    return ending
