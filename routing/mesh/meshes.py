"""From documents to meshes: every resource in the mesh that it names, and what is wrong with each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import msgspec

from routing.mesh.documents.reading import Read
from routing.mesh.model.resources import Mesh, Resource
from routing.mesh.problem import Problem, Severity
from routing.mesh.references import broken
from routing.mesh.snapshot import Inconsistent, MeshSnapshot
from routing.mesh.unsupported import unsupported


class Meshes(msgspec.Struct, frozen=True):
    """The consistent meshes by name, the resources of all, and all problems."""

    snapshots: dict[str, MeshSnapshot]
    resources: tuple[Resource, ...]
    problems: tuple[Problem, ...]


def meshes_of(read: Read) -> Meshes:
    """Return the meshes of what was read: those that are consistent, and what is wrong with the others."""
    files = {each.resource.path: each.file for each in read.found}
    members: defaultdict[str, list[Resource]] = defaultdict(list)
    for each in read.found:
        members[each.resource.mesh_name].append(each.resource)
    problems = list(read.problems)
    snapshots: dict[str, MeshSnapshot] = {}
    for name, resources in members.items():
        if not any(isinstance(each, Mesh) for each in resources):
            document = msgspec.json.encode({"meshName": name, "spec": {}}).decode()
            text = (
                f"is not there; {len(resources)} resources are in it. If others have it: {document} in a file"
            )
            file = files[resources[0].path]
            problems.append(Problem(file, f"mesh/{name}", "", text))
            continue
        problems += [_in_file(problem, files) for problem in _problems(resources)]
        try:
            snapshots[name] = MeshSnapshot(resources)
        except Inconsistent as error:
            problems += [_in_file(problem, files) for problem in error.problems]
    found = tuple(each.resource for each in read.found)
    unique = sorted(set(problems), key=lambda each: (each.file, each.resource, each.field, each.text))
    return Meshes(snapshots, found, tuple(unique))


def _problems(resources: Sequence[Resource]) -> list[Problem]:
    """Return what is wrong beside what makes a snapshot impossible."""
    problems = [problem for problem in broken(resources) if problem.severity is not Severity.ERROR]
    return problems + [problem for each in resources for problem in unsupported(each)]


def _in_file(problem: Problem, files: dict[str, str]) -> Problem:
    return msgspec.structs.replace(problem, file=files.get(problem.resource, problem.file))
