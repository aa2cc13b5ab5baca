"""`headworks mesh import|diff|apply`: resources as files, compared, and made so in an App Mesh API."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from commands.common import REFUSED, USAGE, JsonOption, fail
from commands.mesh_options import ParameterOption, parameters_of
from routing.mesh.api.records import collection_of, made
from routing.mesh.client import MeshClient, Refused
from routing.mesh.documents.reading import Found, Read, read
from routing.mesh.documents.writing import written
from routing.mesh.meshes import Meshes, meshes_of
from routing.mesh.model.resources import Mesh, Resource
from routing.mesh.plan import Change, Specs, planned, specs_of
from routing.mesh.problem import Problem, Severity

UNSUPPORTED: Final = 3
DIFFERENT: Final = 1
SIGNS: Final = {"create": ("+", "green"), "update": ("~", "yellow"), "delete": ("-", "red")}
WantedArgument = Annotated[
    Path, typer.Argument(help="A folder, or a file, of App Mesh resources.", metavar="DIR")
]
KeptArgument = Annotated[
    str, typer.Argument(help="The URL of an App Mesh API, or another folder.", metavar="URL|DIR")
]
RegionOption = Annotated[
    str, typer.Option(help="The region that calls are signed for; AWS_REGION if not said.")
]
PruneOption = Annotated[bool, typer.Option("--prune", help="What the folder does not have, goes.")]


def import_(
    place: Annotated[
        str, typer.Argument(help="A folder or a file, or the URL of an App Mesh API.", metavar="DIR|URL")
    ],
    folder: Annotated[Path, typer.Argument(help="Where one file a resource is written: new, or empty.")],
    *,
    parameters: ParameterOption = None,
    region: RegionOption = "",
    as_json: JsonOption = False,
) -> None:
    """Write resources as files of their own: exit code 1 and nothing written after errors, 3 as `check`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        fail(f"{folder} is not empty", USAGE)
    if _is_url(place):
        resources, problems = asyncio.run(_asked(place, region)), []
    else:
        meshes = _meshes(Path(place), parameters, assumed=True)
        resources, problems = list(meshes.resources), list(meshes.problems)
    errors = [each for each in problems if each.severity is Severity.ERROR]
    try:
        files = [] if errors else [str(written(each, folder)) for each in resources]
    except OSError as error:
        fail(str(error))
    if as_json:
        typer.echo(msgspec.json.encode({"files": files, "problems": problems}).decode())
    else:
        for problem in problems:
            typer.echo(str(problem), err=True)
        counts = Counter(each.path.split("/")[-2] for each in resources)
        said = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        typer.echo(f"nothing written, for {len(errors)} errors" if errors else f"{folder}: {said}")
    if errors:
        raise typer.Exit(REFUSED)
    if any(each.severity is Severity.UNSUPPORTED for each in problems):
        raise typer.Exit(UNSUPPORTED)


def diff(
    wanted: WantedArgument,
    kept: KeptArgument,
    *,
    parameters: ParameterOption = None,
    region: RegionOption = "",
    as_json: JsonOption = False,
) -> None:
    """Print what `apply --prune` would change: exit code 0 if nothing, 1 if something."""
    resources = _consistent(wanted, parameters)
    if _is_url(kept):
        before = asyncio.run(_kept(kept, region, resources))
    else:
        before = specs_of(_consistent(Path(kept), parameters))
    changes = planned(specs_of(resources), before, prune=True)
    _show(changes, as_json=as_json)
    if changes:
        raise typer.Exit(DIFFERENT)


def apply(
    wanted: WantedArgument,
    url: Annotated[str, typer.Argument(help="The URL of an App Mesh API.", metavar="URL")],
    *,
    prune: PruneOption = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete without a question.")] = False,
    parameters: ParameterOption = None,
    region: RegionOption = "",
    as_json: JsonOption = False,
) -> None:
    """Make an App Mesh API have what a folder has; what it has beside, only --prune deletes.

    It can be run again after a failure, and goes on where it ended.
    """
    if not _is_url(url):
        fail(f"{url} is no URL of an App Mesh API: http://HOST:PORT", USAGE)
    resources = _consistent(wanted, parameters)
    changes = planned(specs_of(resources), asyncio.run(_kept(url, region, resources)), prune=prune)
    deletes = [each for each in changes if each.verb == "delete"]
    if deletes and not yes:
        _show(changes, as_json=False, err=True)
        if not sys.stdin.isatty():
            fail(f"{len(deletes)} resources would go: give --yes", USAGE)
        typer.confirm(f"{len(deletes)} resources go. Go on?", abort=True, err=True)
    done, why = asyncio.run(_do(url, region, changes))
    _show(changes[:done], as_json=as_json)
    if why:
        left = len(changes) - done
        fail(f"{_line(changes[done])}: {why}; {done} changes are done, {left} are left: run it again")


def _is_url(place: str) -> bool:
    return place.startswith(("http://", "https://"))


def _meshes(place: Path, parameters: Sequence[str] | None, *, assumed: bool = False) -> Meshes:
    """Read resources; with `assumed`, a mesh that others have is taken for one of which nothing is said."""
    try:
        found = read(place, parameters_of(parameters))
    except OSError as error:
        fail(str(error), USAGE)
    if not assumed:
        return meshes_of(found)
    there = {each.resource.mesh_name for each in found.found if isinstance(each.resource, Mesh)}
    missing = dict.fromkeys(
        each.resource.mesh_name for each in found.found if each.resource.mesh_name not in there
    )
    text = "is not there: it is taken for one of which nothing is said (egress to backends alone)"
    problems = [Problem("", f"mesh/{name}", "", text, Severity.WARNING) for name in missing]
    added = [Found(Mesh(mesh_name=name), "") for name in missing]
    return meshes_of(Read((*found.found, *added), (*found.problems, *problems)))


def _consistent(place: Path, parameters: Sequence[str] | None) -> list[Resource]:
    meshes = _meshes(place, parameters)
    errors = [str(each) for each in meshes.problems if each.severity is Severity.ERROR]
    if errors:
        fail("\n".join(errors))
    return list(meshes.resources)


async def _kept(url: str, region: str, resources: Sequence[Resource]) -> Specs:
    try:
        async with MeshClient(url, region) as client:
            return await client.kept(dict.fromkeys(each.mesh_name for each in resources))
    except Refused as error:
        fail(str(error))


async def _asked(url: str, region: str) -> list[Resource]:
    try:
        async with MeshClient(url, region) as client:
            found = await client.kept(await client.meshes())
    except Refused as error:
        fail(str(error))
    return [made(collection_of(path), path.split("/")[1::2], spec) for path, spec in found.items()]


async def _do(url: str, region: str, changes: Sequence[Change]) -> tuple[int, str]:
    """Return how many changes were done, and why the next one was not."""
    async with MeshClient(url, region) as client:
        for number, change in enumerate(changes):
            try:
                await client.do(change)
            except Refused as error:
                return number, str(error)
    return len(changes), ""


def _show(changes: Sequence[Change], *, as_json: bool, err: bool = False) -> None:
    if as_json:
        typer.echo(msgspec.json.encode(changes).decode(), err=err)
        return
    console = Console(stderr=err, soft_wrap=True, highlight=False)
    for each in changes:
        console.print(Text(_line(each), style=SIGNS[each.verb][1]))
        for difference in each.differences:
            console.print(Text(f"    {difference}"))
    counts: dict[str, Any] = Counter(each.verb for each in changes)
    console.print(
        Text(", ".join(f"{counts[verb]} to {verb}" for verb in SIGNS if counts[verb]) or "no difference")
    )


def _line(change: Change) -> str:
    return f"{SIGNS[change.verb][0]} {change.path}"
