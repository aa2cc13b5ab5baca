"""A campaign's verdict: each part of the promise breaks by what it is about, and by nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from loadtests.campaign import report
from loadtests.campaign.promise import Evidence, judge, merged, quantile_ms
from loadtests.ledger import Row, Verdict
from loadtests.node import Entry, Status
from loadtests.plan import Event, Group, Plan, Promise
from loadtests.users.result import Figures, Measured, Result

PLAN = Plan(
    what="A <test>.",
    load_s=10,
    promise=Promise(
        p99_ms=100, back_within_s=5, handshakes_failed=["expired"], gateway_mb_max=50, duplicates_max=1
    ),
    groups=[
        Group(name="pumps", speaks="mqtt", devices=2, refused=["malformed"]),
        Group(name="noisy", speaks="http", devices=1, judged=False),
        Group(name="strangers", speaks="mqtt", devices=1, tls=True, credential="expired", turned_away=True),
    ],
    events=[Event(at_s=1, what="sink_outage", for_s=2)],
)
ROWS = {
    "pumps": [Row("acme", "a", 60, [], {3: "content"}, [5]), Row("acme", "b", 40, [], {}, [])],
    "noisy": [Row("acme", "c", 10, [], {}, [])],
    "strangers": [Row("acme", "d", 0, [1], {}, [])],
}
RESULT = Result(
    rows=ROWS,
    figures=Figures(devices=4, up=3, turned_away=9, back_longest_s=3.0),
    measured=[
        Measured("MQTT", "pumps", 99, 0, 2.0, 90.0, 95.0, {2: 90, 90: 9}),
        Measured("POST", "noisy", 10, 0, 900.0, 900.0, 900.0, {900: 10}),
        Measured("MQTT", "pumps back", 1, 0, 3000.0, 3000.0, 3000.0, {3000: 1}),
    ],
    errors={},
    exceptions=[],
    settled=True,
    handed_over=True,
)
VERDICT = Verdict(
    devices=4,
    sent=110,
    acknowledged=109,
    refused={"content": 1},
    unanswered=0,
    repeated=1,
    delivered=109,
    lost=0,
    out_of_order=0,
    duplicates=1,
    unexplained=0,
    uninvited=0,
    examples={},
)
STATUS = Status(
    ready=True,
    connections=3,
    accepted=110,
    delivered=110,
    refused={"malformed": 1},
    ledger={"acme": Entry(110, 110, 0, 0)},
    acknowledge_p99_s=None,
)
EVIDENCE = Evidence(
    result=RESULT,
    verdict=VERDICT,
    status=STATUS,
    handshakes_failed={"expired": 9},
    grown_mb=20.0,
    spooled=30,
)


def broken(evidence: Evidence, plan: Plan = PLAN) -> list[str]:
    return [part.what for part in judge(plan, evidence) if not part.kept]


def doctored(**changes: Any) -> Evidence:
    """Return evidence in which fields of any depth, as `verdict__lost`, are replaced."""
    evidence: Any = EVIDENCE
    for path, value in changes.items():
        field, _, inner = path.partition("__")
        if inner:
            value = msgspec.structs.replace(getattr(evidence, field), **{inner: value})  # noqa: PLW2901
        evidence = msgspec.structs.replace(evidence, **{field: value})
    assert isinstance(evidence, Evidence)
    return evidence


def test_a_promise_that_holds_is_kept() -> None:
    assert broken(EVIDENCE) == []


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"verdict__lost": 1}, "lost at most 0"),
        ({"verdict__acknowledged": 0}, "lost at most 0"),
        ({"verdict__out_of_order": 1}, "in order per device"),
        ({"verdict__duplicates": 2}, "at most 1 duplicates, of what was sent again only"),
        ({"verdict__unexplained": 1}, "at most 1 duplicates, of what was sent again only"),
        ({"verdict__uninvited": 1}, "nothing came that nobody sent"),
        ({"status": None}, "the gateway answers at the end"),
        (
            {"status__ledger": {"acme": Entry(110, 109, 1, 0)}},
            "accepted = delivered, by the gateway's ledger",
        ),
        (
            {"status__ledger": {"acme": Entry(108, 108, 0, 0)}},
            "all that was acknowledged was accepted, and little more",
        ),
        (
            {"status__ledger": {"acme": Entry(112, 112, 0, 0)}},
            "all that was acknowledged was accepted, and little more",
        ),
        ({"status__refused": {}}, "the gateway counts the same refusals, by name"),
        ({"status__refused": {"malformed": 9}}, "the gateway counts the same refusals, by name"),
        ({"status__refused": {"malformed": 1, "shed": 1}}, "the gateway counts the same refusals, by name"),
        ({"result__exceptions": ["Oops"]}, "the load test ran as planned"),
        ({"result__handed_over": False}, "the load test ran as planned"),
        ({"result__figures": Figures(devices=4, turned_away=1, strange=1)}, "the load test ran as planned"),
        ({"result__figures": Figures(devices=40, turned_away=1)}, "the whole fleet was there"),
        ({"result__figures": Figures(devices=4, turned_away=1, open=1)}, "every message was answered"),
        ({"result__settled": False}, "every message was answered"),
        ({"result__measured": []}, "99 of 100 answers within 100 ms"),
        (
            {"result__measured": [*RESULT.measured[1:], Measured("MQTT", "pumps", 1, 0, 1, 1, 1, {110: 1})]},
            "99 of 100 answers within 100 ms",
        ),
        (
            {"result__figures": Figures(devices=4, turned_away=1, back_longest_s=6.0)},
            "served again within 5 s of a lost connection",
        ),
        ({"result__measured": RESULT.measured[:2]}, "served again within 5 s of a lost connection"),
        ({"result__figures": Figures(devices=4)}, "turned away: strangers"),
        (
            {"result__rows": ROWS | {"strangers": [Row("acme", "d", 1, [1], {}, [])]}},
            "turned away: strangers",
        ),
        ({"handshakes_failed": {}}, "the gateway counts why handshakes failed"),
        ({"grown_mb": 51.0}, "the gateway grew by at most 50 MB"),
        ({"spooled": 0}, "messages waited while the sink was away"),
        (
            {"result__rows": ROWS | {"noisy": [Row("acme", "c", 10, [], {1: "tenant_limit"}, [])]}},
            "refused only: malformed",
        ),
    ],
    ids=str,
)
def test_each_part_breaks_by_what_it_is_about(changes: dict[str, Any], part: str) -> None:
    assert part in broken(doctored(**changes))


def test_a_refusal_that_was_promised_must_happen() -> None:
    rows = ROWS | {"pumps": [Row("acme", "a", 100, [], {}, [])]}
    assert "refused only: malformed" in broken(doctored(result__rows=rows))


def test_without_a_limit_duplicates_are_only_of_what_was_sent_again() -> None:
    promise = msgspec.structs.replace(PLAN.promise, duplicates_max=None)
    plan = msgspec.structs.replace(PLAN, promise=promise)
    assert broken(doctored(verdict__repeated=7, verdict__duplicates=7), plan) == []
    assert len(broken(doctored(verdict__repeated=7, verdict__duplicates=8), plan)) == 1


def test_a_node_with_other_peers_is_judged_by_what_is_ours() -> None:
    foreign = doctored(foreign=True, verdict=None, status__ledger={"acme": Entry(999, 999, 0, 0)})
    assert broken(foreign) == []


def test_a_quantile_is_the_slot_that_holds_it() -> None:
    histogram = merged([RESULT.measured[0], RESULT.measured[1]])
    assert histogram == {2: 90, 90: 9, 900: 10}
    assert [quantile_ms(histogram, share) for share in (0.5, 0.9, 0.99)] == [2.0, 90.0, 900.0]
    assert quantile_ms({}, 0.99) == 0.0


def test_the_report_has_the_promise_before_the_plots(tmp_path: Path) -> None:
    (tmp_path / "locust.html").write_text("<html><script>'<body>'</script><body>\nplots</body></html>")
    parts = judge(PLAN, doctored(verdict__lost=3))
    page = report.write(tmp_path, "test", PLAN, parts, {"ledger": {"lost": 3}, "errors": {}}).read_text()
    assert 'test: <span class="broken">broken</span>' in page
    assert "A &lt;test&gt;." in page
    assert "after 1 s: sink outage for 2 s" in page
    assert page.index("<script>") < page.index("lost at most 0") < page.index("plots")
    assert "errors" not in page


def test_without_plots_there_is_a_report_all_the_same(tmp_path: Path) -> None:
    page = report.write(tmp_path, "test", PLAN, [], {}).read_text()
    assert page.startswith("<!DOCTYPE html>")
    assert "The promise" in page
