"""What each proxy runs, as Envoy's Client Status Discovery Service says it, on a Unix socket.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-v3/service/status/v3/csds.proto .
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import grpc
import msgspec
from envoy.service.status.v3 import csds_pb2_grpc
from envoy.service.status.v3.csds_pb2 import ClientConfig, ClientStatusRequest, ClientStatusResponse

from routing.xds.server import Discovery, Session

ACKNOWLEDGED: Final = "ACKED"
REFUSED: Final = "NACKED"
ASKED: Final = "REQUESTED"
DEADLINE_S: Final = 10.0
BYTES_MAX: Final = 64 * 2**20


class Unreachable(Exception):
    """No control plane answers on this socket."""


class Row(msgspec.Struct, frozen=True):
    """What a proxy runs of a type; without a type, why it was not given what is served."""

    node: str
    type: str
    version: str
    state: str
    error: str


class ClientStatus(csds_pb2_grpc.ClientStatusDiscoveryServiceServicer):  # type: ignore[misc]  # grpcio has no types
    """Says what is known of the proxies that are connected."""

    def __init__(self, discovery: Discovery) -> None:
        self._discovery = discovery

    async def FetchClientStatus(self, _: Any, __: Any) -> Any:  # noqa: N802  # Envoy's own
        """Return the state of all proxies."""
        sessions = sorted(self._discovery.sessions, key=lambda each: each.node)
        return ClientStatusResponse(config=[_config(each) for each in sessions])


def _config(session: Session) -> Any:
    found: list[dict[str, Any]] = []
    for each in session.statuses():
        state = REFUSED if each.error else ACKNOWLEDGED if each.accepted == each.sent != "" else ASKED
        row: dict[str, Any] = {"type_url": each.kind, "version_info": each.accepted, "client_status": state}
        if each.error:
            row["error_state"] = {"details": each.error, "version_info": each.sent}
        found.append(row)
    if session.problem:
        found.append({"client_status": REFUSED, "error_state": {"details": session.problem}})
    return ClientConfig(node={"id": session.node}, generic_xds_configs=found)


async def fetched(socket: Path) -> list[Row]:
    """Ask a control plane; raises Unreachable."""
    options = [("grpc.max_receive_message_length", BYTES_MAX)]
    async with grpc.aio.insecure_channel(f"unix:{socket}", options=options) as channel:
        try:
            stub = csds_pb2_grpc.ClientStatusDiscoveryServiceStub(channel)
            answer = await stub.FetchClientStatus(ClientStatusRequest(), timeout=DEADLINE_S)
        except grpc.aio.AioRpcError as error:
            raise Unreachable(f"no control plane answers on {socket}: {error.details()}") from error
    return [_row(config.node.id, each) for config in answer.config for each in config.generic_xds_configs]


def _row(node: str, given: Any) -> Row:
    field = given.DESCRIPTOR.fields_by_name["client_status"]
    state = field.enum_type.values_by_number[given.client_status].name
    kind = given.type_url.rpartition(".")[2]
    return Row(node, kind, given.version_info, state, given.error_state.details)
