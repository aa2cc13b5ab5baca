"""What a proxy says of requests: a line for each, and its part of a trace."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from routing.mesh.model.shape import FilePath, Shape

PORT_MAX: Final = 65_535
COLLECTOR: Final = r"^([^\s/:\[\]@]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$"


class JsonAccessLog(Shape, frozen=True, kw_only=True):
    """A line of JSON for each request and each connection; App Mesh's own access log is in place of it."""

    format: Literal["JSON"] = "JSON"
    path: FilePath = "/dev/stdout"


class Tracing(Shape, frozen=True, kw_only=True):
    """Where spans go, and of how many requests that are not traced by their caller there are any."""

    collector: Annotated[str, Meta(pattern=COLLECTOR, max_length=255)]
    """HOST:PORT of OTLP over gRPC."""
    percent: Annotated[float, Meta(ge=0, le=100)] = 10.0
    service_name: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    """In place of the name of the node or gateway."""
    certificate_chain: FilePath | None = None
    """The authorities of the collector's certificate, PEM, beside the proxy; without it there is no TLS."""
    trust_callers: bool = False
    """Whether a gateway goes on with traces of its callers; a node always does."""

    def __post_init__(self) -> None:
        """Refuse what is no port."""
        if not 1 <= self.port <= PORT_MAX:
            raise ValueError(f"collector has no port from 1 to {PORT_MAX}")

    @property
    def host(self) -> str:
        """The name or IP address of the collector."""
        return self.collector.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port of the collector."""
        return int(self.collector.rpartition(":")[2])
