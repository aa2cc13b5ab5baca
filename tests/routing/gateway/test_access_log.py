from __future__ import annotations

import json
from typing import Any

from aiohttp.test_utils import make_mocked_request

from routing.gateway.access_log import PATH_CHARACTERS_MAX, encoded, line_of, shown
from routing.gateway.exchange import Exchange
from routing.gateway.trace import begin
from routing.tenancy.identity import Credential
from routing.tenancy.principal import Principal

SECRET = "hw_1_secret"


def exchange() -> Exchange:
    request = make_mocked_request("GET", f"/v1/a?token={SECRET}", headers={"X-API-Key": SECRET})
    made = Exchange(request, begin(None, None, 7 << 64 | 9), 10.0)
    made.path, made.query = "/v1/a", f"token={SECRET}"
    made.body, made.status = SECRET.encode(), 200
    made.principal = Principal(
        tenant="acme",
        name="portal",
        scopes=frozenset({"devices:read"}),
        credential=Credential.API_KEY,
        fingerprint="k-1",
    )
    made.tenant, made.bytes_in, made.bytes_out = "acme", 3, 5
    return made


def test_a_line_says_who_asked_for_what_and_how_it_went() -> None:
    said = json.loads(encoded(line_of(exchange(), 10.01234, 1_764_000_000.5)))
    assert (said["event"], said["level"], said["timestamp"]) == (
        "request",
        "info",
        "2025-11-24T16:00:00.500000Z",
    )
    assert (said["method"], said["path"], said["route"], said["status"], said["ms"]) == (
        "GET",
        "/v1/a",
        "",
        200,
        12.34,
    )
    assert (said["tenant"], said["caller"], said["credential"], said["fingerprint"]) == (
        "acme",
        "portal",
        "api_key",
        "k-1",
    )
    assert (said["bytes_in"], said["bytes_out"], said["cached"], said["refused"]) == (3, 5, False, "")
    assert len(said["trace"]) == 32
    assert len(said["span"]) == 16


def test_nothing_that_is_secret_is_in_it() -> None:
    assert SECRET.encode() not in encoded(line_of(exchange(), 11.0, 0.0))


def test_a_stranger_has_no_name_and_a_path_an_end() -> None:
    made = exchange()
    made.principal = None
    made.path = "/" + "a" * 1000
    line = line_of(made, 11.0, 0.0)
    assert (line.caller, line.credential, line.fingerprint) == ("", "", "")
    assert len(line.path) == PATH_CHARACTERS_MAX


def test_people_get_the_same_from_the_log_of_the_process() -> None:
    told: list[dict[str, Any]] = []

    class Told:
        def info(self, event: str, **values: Any) -> None:
            told.append({"event": event, **values})

    line = line_of(exchange(), 11.0, 0.0)
    shown(Told())(line)
    said = json.loads(encoded(line))
    assert told == [{name: value for name, value in said.items() if name not in {"level", "timestamp"}}]
