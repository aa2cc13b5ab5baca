"""The adapter to Envoy's protobuf messages, which have no types for mypy.

Everything else in this package writes configuration as dictionaries under the names of Envoy's API; a name
or a type that Envoy does not know fails here, when the message is made.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import any_pb2, json_format

Config = dict[str, Any]
"""A message before it is one: fields by name."""
Message = Any
"""A message of xds-protos."""


def packed(kind: Any, config: Config | None = None) -> Message:
    """Return a message of `kind` as the Any that extensions are given as."""
    made = any_pb2.Any()
    made.Pack(kind(**(config or {})), deterministic=True)
    return made


def extension(name: str, kind: Any, config: Config | None = None) -> Config:
    """Return an extension with its typed configuration."""
    return {"name": name, "typed_config": packed(kind, config)}


def as_json(message: Message) -> Config:
    """Return a message as Envoy reads it from a file."""
    made: Config = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return made


def number(value: int) -> Config:
    """Return a number as a wrapper, which is how Envoy tells 0 from absent."""
    return {"value": value}


def yes() -> Config:
    """Return true as a wrapper."""
    return {"value": True}


def share(percent: float) -> Config:
    """Return a share of requests, exact to a ten-thousandth of a percent."""
    return {"numerator": round(percent * 10_000), "denominator": "MILLION"}


def milliseconds(value: int) -> Config:
    """Return a duration."""
    seconds, rest = divmod(value, 1000)
    return {"seconds": seconds, "nanos": rest * 1_000_000}


def address(host: str, port: int) -> Config:
    """Return the address of a socket; `::` is IPv4 too."""
    at: Config = {"address": host, "port_value": port}
    if host == "::":
        at["ipv4_compat"] = True
    return {"socket_address": at}
