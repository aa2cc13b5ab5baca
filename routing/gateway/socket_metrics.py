"""What is counted of WebSockets: the WebSocket API, pushes, live telemetry. Labels are from closed sets."""

from __future__ import annotations

import enum

from prometheus_client import CollectorRegistry, Counter, Gauge

from routing.gateway.open_socket import Ending


class Answered(enum.Enum):
    """What became of a message of a client."""

    OK = "ok"
    THROTTLED = "throttled"
    FORBIDDEN = "forbidden"
    FAILED = "failed"


class Pushed(enum.Enum):
    """What became of a call of /@connections."""

    OK = "ok"
    GONE = "gone"
    TOO_LARGE = "too_large"
    FULL = "full"
    FORBIDDEN = "forbidden"


class SocketMetrics:
    """The counters, in a registry of the gateway's; `api` is a name in the routes file."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.open = Gauge("headworks_socket_open", "WebSockets that are open", ["api"], registry=registry)
        self.refused = Counter(
            "headworks_socket_refused", "Handshakes refused", ["api", "status"], registry=registry
        )
        self.ended = Counter(
            "headworks_socket_ended", "WebSockets ended", ["api", "ending"], registry=registry
        )
        self.messages = Counter(
            "headworks_socket_messages", "Messages of clients", ["api", "outcome"], registry=registry
        )
        self.pushes = Counter(
            "headworks_socket_pushes", "Calls of /@connections", ["outcome"], registry=registry
        )
        self.goodbyes = Counter(
            "headworks_socket_disconnects", "Events of $disconnect", ["outcome"], registry=registry
        )
        self.subscribers = Gauge("headworks_live_subscribers", "Dashboards at /v1/live", registry=registry)
        self.tails = Gauge("headworks_live_tails", "Streams of live telemetry held", registry=registry)
        self.values = Counter(
            "headworks_live_values", "Values for dashboards", ["outcome"], registry=registry
        )
        self.tail_failures = Counter(
            "headworks_live_tail_failures", "Streams of live telemetry that broke", registry=registry
        )
        self.bad_records = Counter(
            "headworks_live_bad_records", "Live records that could not be read", registry=registry
        )

    def opened(self, api: str) -> None:
        """Count a handshake that was answered with 101."""
        self.open.labels(api).inc()

    def closed(self, api: str, ending: Ending) -> None:
        """Count the end of a WebSocket."""
        self.open.labels(api).dec()
        self.ended.labels(api, ending.value).inc()

    def handshake_refused(self, api: str, status: int) -> None:
        """Count a handshake that was not."""
        self.refused.labels(api, str(status)).inc()

    def message(self, api: str, outcome: Answered) -> None:
        """Count a message of a client."""
        self.messages.labels(api, outcome.value).inc()

    def pushed(self, outcome: Pushed) -> None:
        """Count a call of /@connections."""
        self.pushes.labels(outcome.value).inc()

    def disconnect_told(self, *, ok: bool) -> None:
        """Count a $disconnect that its upstream took, or that was given up."""
        self.goodbyes.labels("ok" if ok else "lost").inc()

    def shown(self, sent: int, conflated: int, dropped: int) -> None:
        """Count the values of one batch for a dashboard, and what it missed."""
        self.values.labels("sent").inc(sent)
        self.values.labels("conflated").inc(conflated)
        self.values.labels("dropped").inc(dropped)
