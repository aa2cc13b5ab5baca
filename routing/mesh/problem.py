"""What is wrong with a mesh, where."""

from __future__ import annotations

import enum

import msgspec


class Severity(enum.Enum):
    """What a problem means for whoever runs the mesh."""

    ERROR = "error"
    """The mesh is not consistent: nothing is compiled."""
    UNSUPPORTED = "unsupported"
    """What App Mesh did here is not done: the proxies that it concerns are not exported."""
    WARNING = "warning"
    """The mesh runs; somebody should look."""


class Problem(msgspec.Struct, frozen=True, order=True):
    """One problem: the file, the resource (`mesh/shop/virtualNode/cart`) and the field that it is in.

    `file` is empty for what was not read from one, `resource` and `field` where a whole file is meant.
    """

    file: str
    resource: str
    field: str
    text: str
    severity: Severity = Severity.ERROR

    def __str__(self) -> str:
        """Return the problem as one line."""
        where = " ".join(part for part in (self.file, self.resource, self.field) if part)
        return f"{self.severity.value}: {where}: {self.text}"
