"""What cannot be compiled, although the mesh is consistent."""

from __future__ import annotations

from collections.abc import Sequence

from routing.mesh.problem import Problem, Severity


class Uncompilable(Exception):
    """A proxy cannot do what its mesh says; `problems` says what."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


def uncompilable(resource: str, field: str, text: str) -> Uncompilable:
    """Return the exception of a single problem."""
    return Uncompilable([Problem("", resource, field, text, Severity.UNSUPPORTED)])
