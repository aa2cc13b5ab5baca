"""What all shapes of the mesh are made of.

The shapes are those of App Mesh's own API (service model 2019-01-25): the same members, limits and names, in
camelCase on the wire. Members that the service did not know are refused, never dropped.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

AccountId = Annotated[str, Meta(min_length=12, max_length=12)]
FilePath = Annotated[str, Meta(min_length=1, max_length=255)]
HeaderName = Annotated[str, Meta(min_length=1, max_length=50)]
HeaderMatch = Annotated[str, Meta(min_length=1, max_length=255)]
HttpPath = Annotated[str, Meta(min_length=1, max_length=255)]
IpPreference = Literal["IPv6_PREFERRED", "IPv4_PREFERRED", "IPv4_ONLY", "IPv6_ONLY"]
Millis = Annotated[int, Meta(ge=0)]
Percent = Annotated[float, Meta(ge=0.0001, le=100)]
FieldName = Annotated[str, Meta(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,50}$")]
"""The name of a header as RFC 9110 has it."""
HostName = Annotated[str, Meta(pattern=r"^[0-9A-Za-z._:-]{1,255}$")]
"""A name for DNS, or an IP address."""
PortNumber = Annotated[int, Meta(ge=1, le=65_535)]
Positive = Annotated[int, Meta(ge=1)]
Priority = Annotated[int, Meta(ge=0, le=1000)]
Protocol = Literal["http", "tcp", "http2", "grpc"]
ResourceName = Annotated[str, Meta(min_length=1, max_length=255)]
GatewayProtocol = Literal["http", "http2", "grpc"]
Timestamp = float | str
"""Seconds since 1970 as the API gives them, or ISO 8601 as the AWS CLI prints them."""


class Shape(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True
):
    """A structure of the service model; a member that is not required may be None."""

    exactly_one: ClassVar[tuple[str, ...]] = ()
    at_least_one: ClassVar[tuple[str, ...]] = ()
    at_most_one: ClassVar[tuple[tuple[str, ...], ...]] = ()

    def __post_init__(self) -> None:
        """Refuse members that exclude each other."""
        if self.exactly_one and len(self._set(self.exactly_one)) != 1:
            self._refuse("exactly one", self.exactly_one)
        if self.at_least_one and not self._set(self.at_least_one):
            self._refuse("at least one", self.at_least_one)
        for group in self.at_most_one:
            if len(self._set(group)) > 1:
                self._refuse("at most one", group)

    def _set(self, members: tuple[str, ...]) -> list[str]:
        return [member for member in members if getattr(self, member) is not None]

    def _refuse(self, how_many: str, members: tuple[str, ...]) -> None:
        wire = {field.name: field.encode_name for field in msgspec.structs.fields(type(self))}
        found = " and ".join(wire[member] for member in self._set(members)) or "none"
        raise ValueError(
            f"{how_many} of {', '.join(wire[member] for member in members)} must be set, not {found}"
        )


class OneOf(Shape, frozen=True, kw_only=True):
    """A union of the service model: exactly one of its members is set."""

    def __post_init__(self) -> None:
        """Refuse none and several."""
        if len(self._set(self.__struct_fields__)) != 1:
            self._refuse("exactly one", self.__struct_fields__)


class Duration(Shape, frozen=True, kw_only=True):
    """How long something takes; zero of a timeout means that there is none."""

    unit: Literal["s", "ms"] | None = None
    value: Millis | None = None

    @property
    def milliseconds(self) -> int:
        """The duration in milliseconds."""
        value = self.value or 0
        return value if self.unit == "ms" else value * 1000
