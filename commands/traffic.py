"""`headworks traffic`: traffic shifted between versions of a service, as the metrics of the new one allow."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
import typer

from commands.common import USAGE, JsonOption, fail
from commands.traffic_options import (
    EndpointOption,
    PlaceOption,
    RegionOption,
    RouteArgument,
    admins_of,
    route_of,
    steps_of,
)
from commands.traffic_running import (
    STOPPED,
    Place,
    Source,
    Wanted,
    answered,
    names_in,
    new_id,
    opened,
    run_shift,
    who,
)
from routing.traffic import route as routes
from routing.traffic.judgement import Terms
from routing.traffic.keeping import Kept
from routing.traffic.running import abort as abort_shift
from routing.traffic.running import changed_text, recorded
from routing.traffic.shift import Pace
from runtime import clock

app = typer.Typer(
    help="Traffic shifted between versions of a service, as its metrics allow.", no_args_is_help=True
)
STEP_MAX: Final = 10
STEP_MAX_S: Final = 60.0
"""A step may take so many times longer than it takes at least, and so long in any case."""
WITH_RESUME: Final = {
    "route",
    "prometheus",
    "envoys",
    "unwatched",
    "endpoint_url",
    "region",
    "place",
    "resume",
    "dry_run",
    "as_json",
}
"""What may be said of a shift that goes on; all else is as it was begun."""


@app.command("shift")
def shift(
    context: typer.Context,
    route: RouteArgument,
    *,
    to: Annotated[str, typer.Option(help="The virtual node that gets more: the canary.")] = "",
    away: Annotated[
        list[str] | None,
        typer.Option("--from", help="A node that gets less, in place of all others. May be repeated."),
    ] = None,
    steps: Annotated[str, typer.Option(help="What the canary gets, in percent.")] = "5,25,50,100",
    step_s: Annotated[float, typer.Option(min=0, help="How long a step takes at least.")] = 60.0,
    step_max_s: Annotated[
        float | None,
        typer.Option(min=0, help="When a step that is not judged is rolled back; 10 times --step-s."),
    ] = None,
    look_s: Annotated[float, typer.Option(min=0.1, max=600, help="How often it is looked at.")] = 5.0,
    samples_min: Annotated[int, typer.Option(min=1, help="Answers of the canary that a step needs.")] = 500,
    success_min: Annotated[
        float | None, typer.Option(min=0, max=1, help="The part of its requests that must succeed.")
    ] = None,
    worse_max: Annotated[
        float, typer.Option(min=0, max=1, help="The part of them by which more may fail than of the others'.")
    ] = 0.005,
    compare: Annotated[bool, typer.Option(help="Compare its failures with those of the others.")] = True,
    p99_max_ms: Annotated[
        float | None, typer.Option("--latency-p99-max-ms", min=0, help="How long 99 % of them may take.")
    ] = None,
    p99_ratio_max: Annotated[
        float | None,
        typer.Option("--latency-p99-ratio-max", min=1, help="The same, as a multiple of the others'."),
    ] = None,
    mistakes_max: Annotated[
        float, typer.Option(min=1e-9, max=0.5, help="How probable it may be to roll back a good canary.")
    ] = 0.01,
    prometheus: Annotated[str, typer.Option(help="The URL of a Prometheus that scrapes the callers.")] = "",
    envoys: Annotated[
        list[str] | None,
        typer.Option("--envoy", help="The admin HOST:PORT of a caller's proxy. May be repeated."),
    ] = None,
    unwatched: Annotated[
        bool, typer.Option("--unwatched", help="Shift by the clock, and judge nothing.")
    ] = False,
    endpoint_url: EndpointOption = "",
    region: RegionOption = "us-east-1",
    place: PlaceOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a shift that is stalled.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the steps, and change nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Shift traffic step by step: exit code 0 when promoted, 1 when rolled back, 3 when stopped."""
    name = route_of(route)
    source = Source(prometheus, admins_of(envoys))
    if bool(prometheus) + bool(source.admins) + unwatched != 1:
        fail("say where statistics are: --prometheus URL or --envoy HOST:PORT, or --unwatched", USAGE)
    wanted = None
    if resume:
        sources = {each: context.get_parameter_source(each) for each in context.params.keys() - WITH_RESUME}
        if any(source is not None and source.name == "COMMANDLINE" for source in sources.values()):
            fail("--resume goes on as it was begun: say where statistics are, and nothing else", USAGE)
    else:
        if not to:
            fail("say who gets more: --to NODE", USAGE)
        worse = worse_max if compare else None
        terms = Terms(success_min, worse, p99_max_ms, p99_ratio_max, samples_min, mistakes_max)
        if not unwatched and (success_min, worse, p99_max_ms, p99_ratio_max) == (None,) * 4:
            fail("nothing is asked of the canary: --compare, --success-min or --latency-p99-max-ms", USAGE)
        pace = Pace(step_s, max(STEP_MAX * step_s, STEP_MAX_S) if step_max_s is None else step_max_s, look_s)
        wanted = Wanted(to, tuple(away or ()), steps_of(steps), pace, None if unwatched else terms)
    kept = Place(endpoint_url, region, place)
    raise typer.Exit(answered(run_shift(name, kept, source, wanted, dry_run=dry_run, as_json=as_json)))


@app.command("abort")
def abort(
    route: RouteArgument,
    *,
    endpoint_url: EndpointOption = "",
    region: RegionOption = "us-east-1",
    place: PlaceOption = None,
) -> None:
    """Restore the weights from before a shift, running or stalled; exit code 3 where there is none."""
    name = route_of(route)

    async def run() -> int:
        async with opened(name, Place(endpoint_url, region, place)) as keeping:
            done = await abort_shift(keeping, new_id(), who(), clock.unix_s)
            nodes = routes.nodes((await keeping.read()).spec)
        weights = dict(zip(nodes, done.plan.before, strict=True))
        typer.echo(f"aborted: {', '.join(f'{node} {weight}' for node, weight in weights.items())}")
        return 0

    raise typer.Exit(answered(run()))


NOTHING: Final = "none"
"""The state of a route at which nothing was shifted."""


class Row(msgspec.Struct, frozen=True):
    """A shift as it is listed."""

    route: str
    state: str
    by: str
    step: str
    weights: str
    began: str
    looked: str
    why: str


@app.command("status")
def status(
    route: Annotated[
        list[str] | None,
        typer.Argument(help="Routes; without any, all that were shifted.", metavar="ROUTE..."),
    ] = None,
    *,
    endpoint_url: EndpointOption = "",
    region: RegionOption = "us-east-1",
    place: PlaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the last shift at each route; exit code 3 where one is stalled, or its route was changed."""
    names = [route_of(each) for each in route or ()]
    where = Place(endpoint_url, region, place)

    async def run() -> int:
        rows = []
        for name in names or await names_in(where):
            async with opened(name, where) as keeping:
                rows.append(_row(name.path, await keeping.read()))
        rows = [row for row in rows if names or row.state != NOTHING]
        typer.echo(msgspec.json.encode(rows).decode() if as_json else "\n".join(map(_lines, rows)))
        return STOPPED if any(row.state in {"stalled", "changed"} for row in rows) else 0

    raise typer.Exit(answered(run()))


def _lines(row: Row) -> str:
    if row.state == NOTHING:
        return f"{row.route}: nothing was shifted\n  {row.weights}"
    step = f"  step {row.step}: {row.weights}\n  by {row.by}, begun {row.began}, seen {row.looked}"
    return f"{row.route}: {row.state}\n{step}" + (f"\n  {row.why}" if row.why else "")


def _row(path: str, kept: Kept) -> Row:
    nodes, weights = routes.nodes(kept.spec), routes.weights(kept.spec)
    shares = ", ".join(f"{node} {weight}" for node, weight in zip(nodes, weights, strict=True))
    record = recorded(kept)
    if record is None:
        return Row(path, NOTHING, "", "", shares, "", "", "")
    head, why, state = record.head, record.why, record.head.state.value
    if record.open and not record.explains(kept.spec):
        state, why = "changed", changed_text(record, kept)
    elif record.stalled(clock.unix_s()):
        state = "stalled"
    step = f"{head.step + 1} of {len(record.plan.steps)}"
    return Row(path, state, head.by, step, shares, _time(head.began_s), _time(head.beat_s), why)


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")
