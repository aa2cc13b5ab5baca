from __future__ import annotations

from services.feed.kinesis.lineage import Listed, readable

SPLIT = [Listed("p", ()), Listed("a", ("p",)), Listed("b", ("p",))]
MERGED = [*SPLIT, Listed("m", ("a", "b"))]


def test_children_wait_for_their_parents() -> None:
    assert readable(SPLIT, ()) == ["p"]
    assert readable(SPLIT, {"p"}) == ["a", "b"]


def test_a_merged_shard_waits_for_both() -> None:
    assert readable(MERGED, {"p", "a"}) == ["b"]
    assert readable(MERGED, {"p", "a", "b"}) == ["m"]
    assert readable(MERGED, {"p", "a", "b", "m"}) == []


def test_parents_that_the_stream_has_forgotten_are_not_waited_for() -> None:
    assert readable(MERGED[1:], ()) == ["a", "b"]
    assert readable(MERGED[3:], ()) == ["m"]
