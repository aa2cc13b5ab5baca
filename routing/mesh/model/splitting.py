"""Who else gets the requests of a route, and who of several targets gets them."""

from __future__ import annotations

from routing.mesh.model.shape import FieldName, Percent, PortNumber, ResourceName, Shape


class Mirror(Shape, frozen=True, kw_only=True):
    """A node that gets a copy of a share of requests, and whose answers nobody sees."""

    virtual_node: ResourceName
    port: PortNumber | None = None
    percent: Percent = 100.0


class Sticky(Shape, frozen=True, kw_only=True):
    """The header by whose value a request always goes to the same of the weighted targets."""

    header: FieldName
