"""Faults on purpose, as Envoy's filter makes them."""

from __future__ import annotations

from typing import Final

from envoy.extensions.filters.http.fault.v3.fault_pb2 import HTTPFault

from routing.mesh.compile.messages import Config, Message, extension, milliseconds, packed, share
from routing.mesh.model.faults import Faults

NAME: Final = "envoy.filters.http.fault"


def filter_() -> Config:
    """Return a filter that makes no faults by itself."""
    return extension(NAME, HTTPFault)


def said(faults: Faults) -> Message:
    """Return what is said to the filter."""
    config: Config = {}
    if faults.delay is not None:
        delay = faults.delay
        config["delay"] = {
            "fixed_delay": milliseconds(delay.duration.milliseconds),
            "percentage": share(delay.percent),
        }
    if faults.abort is not None:
        config["abort"] = {"http_status": faults.abort.status, "percentage": share(faults.abort.percent)}
    return packed(HTTPFault, config)
