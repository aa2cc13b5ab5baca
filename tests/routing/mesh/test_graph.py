"""A mesh as a drawing: who calls whom, where it stands, and that the drawing is one."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import fromstring

from hypothesis import given
from hypothesis import strategies as st

from routing.mesh.graph.calls import Call, Graph, Traffic, graph_of
from routing.mesh.graph.curves import curves
from routing.mesh.graph.drawing import drawn, state_of
from routing.mesh.graph.layout import HEIGHT, WIDTH, laid_out
from tests.support import mesh_documents as of

SHOP = [
    of.mesh(),
    of.gateway("edge", 8088),
    of.gateway_route("edge", "all", "cart.local", {"prefix": "/"}),
    of.node("front", 8080, backends=("cart.local", "stock.local")),
    of.node("v1", 8081, backends=("stock.local",)),
    of.node("v2", 8082),
    of.node("stock", 9000, protocol="tcp"),
    of.router("cart"),
    of.route("cart", "all", {"v1": 90, "v2": 10}),
    of.service("cart.local", router="cart"),
    of.service("stock.local", node="stock"),
]
NAMES = st.sampled_from([f"virtualNode/{name}" for name in "abcdefghij"])


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    nodes = tuple(sorted(draw(st.sets(NAMES, min_size=1))))
    pairs = draw(st.sets(st.tuples(st.sampled_from(nodes), st.sampled_from(nodes)), max_size=25))
    calls = tuple(Call(caller, callee, "x.local", 1.0) for caller, callee in sorted(pairs))
    return Graph("m", (), nodes, calls, {})


def test_calls_are_those_of_backends_and_gateway_routes_with_their_shares(tmp_path: Path) -> None:
    made = graph_of(of.snapshot(tmp_path, *SHOP), {}, 0)
    assert [
        (each.caller.partition("/")[2], each.callee.partition("/")[2], each.share) for each in made.calls
    ] == [
        ("edge", "v1", 0.9),
        ("edge", "v2", 0.1),
        ("front", "stock", 1.0),
        ("front", "v1", 0.9),
        ("front", "v2", 0.1),
        ("v1", "stock", 1.0),
    ]


@given(graph=graphs())
def test_boxes_do_not_cover_each_other_and_calls_go_on(graph: Graph) -> None:
    layout = laid_out(graph)
    assert set(layout.boxes) == set(graph.nodes)
    boxes = sorted(layout.boxes.items())
    for at, (_, one) in enumerate(boxes):
        assert 0 <= one.x <= layout.width - WIDTH
        assert 0 <= one.y <= layout.height - HEIGHT
        for _, other in boxes[at + 1 :]:
            assert abs(one.x - other.x) >= WIDTH or abs(one.y - other.y) >= HEIGHT
    assert layout == laid_out(graph)
    labels = {(each.caller, each.callee): (60.0, 16.0) for each in graph.calls}
    assert set(curves(layout, labels)) == set(labels)


@given(graph=graphs())
def test_a_drawing_is_a_document(graph: Graph) -> None:
    svg = fromstring(drawn(graph))  # noqa: S314  # of our own making
    assert svg.tag.endswith("svg")


def test_without_a_circle_who_is_called_stands_behind(tmp_path: Path) -> None:
    layout = laid_out(graph_of(of.snapshot(tmp_path, *SHOP), {}, 0))
    for caller, callee in (("front", "v1"), ("front", "stock"), ("v1", "stock")):
        assert layout.boxes[f"virtualNode/{caller}"].x < layout.boxes[f"virtualNode/{callee}"].x


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    evil = '<script>"&'
    node = of.node(evil, 8080)
    text = drawn(graph_of(of.snapshot(tmp_path, of.mesh(), node), {}, 0))
    assert "<script" not in text
    assert f"virtualNode/{evil}" in {each.text for each in fromstring(text).iter()}  # noqa: S314  # of our own


def test_the_drawing_says_what_was_counted(tmp_path: Path) -> None:
    edge, v1 = "virtualGateway/edge", "virtualNode/v1"
    traffic = {(edge, v1): Traffic(1234.5, 0.0213, 41.27)}
    svg = fromstring(drawn(graph_of(of.snapshot(tmp_path, *SHOP), traffic, 5)))  # noqa: S314  # of our own
    said = [each.text or "" for each in svg.iter()]
    assert "1,234/s, 2.13 % fail, p99 41.3 ms" in said
    assert any("edge calls v1 by cart.local 90%: 1,234/s" in each for each in said)  # for who cannot see
    assert [each.get("class") for each in svg.iter() if each.get("class") == "call warning"][1:]


def test_states_go_by_what_failed() -> None:
    states = [state_of(None), state_of(Traffic(0, 0))]
    states += [state_of(Traffic(1, failed)) for failed in (0, 0.009, 0.01, 0.05)]
    assert states == ["idle", "idle", "good", "good", "warning", "bad"]
