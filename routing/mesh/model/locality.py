"""Where callers look for endpoints first, and whom they call when those are not well."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from routing.mesh.model.shape import Shape

RegionName = Annotated[str, Meta(min_length=1, max_length=64)]


class Locality(Shape, frozen=True, kw_only=True):
    """Endpoints in the caller's own zone or region first, then in the regions of `failover` in their order.

    A place takes all of its requests while at least `healthy_percent_min` of its endpoints are well; below,
    the next one takes a share of them.
    """

    prefer: Literal["ZONE", "REGION"]
    failover: Annotated[tuple[RegionName, ...], Meta(max_length=16)] = ()
    healthy_percent_min: Annotated[int, Meta(ge=1, le=100)] = 70
