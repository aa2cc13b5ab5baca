"""`headworks traffic`: what it refuses, and what it says of a route at which nothing was shifted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from commands.traffic import app
from tests.support import mesh_documents as of
from tests.support.mesh_api import SECRET, mesh_api

ROUTE = "mesh/shop/virtualRouter/cart/route/all"
SHIFT = ["shift", ROUTE]
CLOCK = "mesh/shop/virtualRouter/cart/route/clock"
TCP = "mesh/shop/virtualRouter/cart/route/tcp"


def run(*words: str) -> tuple[int, str, str]:
    got = CliRunner().invoke(app, list(words))
    return got.exit_code, got.stdout, got.stderr


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mesh_api(tmp_path_factory.mktemp("api")) as api, pytest.MonkeyPatch.context() as patch:
        client = api.client()
        client.create_mesh(**of.mesh())
        client.create_virtual_node(**of.node("v1", 81))
        client.create_virtual_node(**of.node("v2", 82))
        client.create_virtual_router(**of.router("cart"))
        client.create_route(**of.route("cart", "all", {"v1": 100, "v2": 0}))
        for name in ("tcp", "clock"):
            client.create_route(**of.route("cart", name, {"v1": 100, "v2": 0}, kind="tcpRoute"))
        patch.setenv("AWS_ACCESS_KEY_ID", "AKADMIN")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_ENDPOINT_URL", api.url)
        yield api.url


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["shift", "mesh/shop"], "mesh/shop is not mesh/MESH/virtualRouter/ROUTER/route/ROUTE"),
        ([*SHIFT, "--to", "v2"], "say where statistics are"),
        ([*SHIFT, "--to", "v2", "--unwatched", "--prometheus", "http://p"], "say where statistics are"),
        ([*SHIFT, "--unwatched"], "say who gets more: --to NODE"),
        ([*SHIFT, "--to", "v2", "--envoy", "x"], "--envoy x does not end with HOST:PORT"),
        ([*SHIFT, "--to", "v2", "--unwatched", "--steps", "a"], "--steps a is not percent"),
        ([*SHIFT, "--to", "v2", "--envoy", "h:1", "--no-compare"], "nothing is asked of the canary"),
        ([*SHIFT, "--resume", "--unwatched", "--to", "v2"], "--resume goes on as it was begun"),
        ([*SHIFT, "--to", "v2", "--unwatched", "--endpoint-url", ""], "say where the route is kept"),
    ],
)
def test_what_is_asked_for_wrongly_is_said(words: list[str], said: str) -> None:
    code, _, error = run(*words)
    assert (code, said in error) == (2, True), error


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([*SHIFT, "--to", "v3", "--unwatched"], 2, "v3 is not a target of the route, which leads to v1, v2"),
        ([*SHIFT, "--to", "v2", "--steps", "100", "--envoy", "h:1"], 2, "nothing to compare with"),
        (["shift", TCP, "--to", "v2", "--envoy", "h:1"], 2, "failures of a tcpRoute are not in"),
        (["shift", f"{ROUTE}s", "--to", "v2", "--unwatched"], 2, f"there is no {ROUTE}s"),
        ([*SHIFT, "--unwatched", "--resume"], 3, "there is no shift at this route"),
        (["abort", ROUTE], 3, "there is no shift at this route"),
        (["abort", ROUTE, "--endpoint-url", "http://127.0.0.1:1"], 3, "http://127.0.0.1:1: "),
    ],
)
@pytest.mark.usefixtures("url")
def test_what_cannot_be_done_is_said(words: list[str], code: int, said: str) -> None:
    got, _, error = run(*words)
    assert (got, said in error) == (code, True), error


@pytest.mark.usefixtures("url")
def test_a_route_at_which_nothing_was_shifted_has_its_weights() -> None:
    code, out, _ = run("status", ROUTE, TCP, "--json")
    assert code == 0
    assert [(row["state"], row["weights"]) for row in json.loads(out)] == [("none", "v1 100, v2 0")] * 2


@pytest.mark.usefixtures("url")
def test_a_shift_by_the_clock_is_of_any_kind_of_route() -> None:
    words = ["--to", "v2", "--steps", "40,100", "--step-s", "0.1", "--look-s", "0.1", "--unwatched"]
    code, out, error = run("shift", CLOCK, *words)
    assert code == 0, error
    assert out.splitlines() == [
        "step 1 of 2: v1 60, v2 40",
        "  by the clock",
        "step 2 of 2: v1 0, v2 100",
        "promoted: by the clock",
    ]
    code, out, _ = run("status", "--json")
    assert code == 0
    assert [(row["route"], row["state"]) for row in json.loads(out)] == [(CLOCK, "promoted")]


def test_shifts_in_a_folder_are_listed(tmp_path: Path) -> None:
    place = ["--place", str(of.written(tmp_path, of.route("cart", "all", {"v1": 1, "v2": 0})))]
    assert run("status", *place, "--json") == (0, "[]\n", "")
    words = ["--to", "v2", "--steps", "100", "--step-s", "0.1", "--look-s", "0.1", "--unwatched"]
    assert run(*SHIFT, *words, *place)[0] == 0
    code, out, _ = run("status", *place, "--json")
    assert (code, [row["weights"] for row in json.loads(out)]) == (0, ["v1 0, v2 100"])
