"""What the side-by-side comparison makes of its runs: cases, ratios, verdicts, tables and the chart."""

from __future__ import annotations

import json
from io import StringIO
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from bench.side_by_side import chart, table
from bench.side_by_side.cases import (
    CASES,
    HEADWORKS,
    MOSQUITTO,
    TARGETS,
    Target,
    chosen,
    cores_for,
    targets_for,
)
from bench.side_by_side.contenders import OTHERS, contenders, programs_in
from bench.side_by_side.figures import Run, Runs, exported, judged, medians, ratio, rows
from bench.side_by_side.run import notes_on

NAMES = [case.name for case in CASES]


def run(per_s: float, cpu_us: float = 2.0) -> Run:
    of_load = {"per_s": per_s, "p50_ms": 1.0, "p99_ms": 2.0, "resumed": 0.0, "busy": 0.5}
    return of_load | {"user_us": cpu_us / 2, "kernel_us": cpu_us / 2, "cpu_us": cpu_us}


RUNS: Runs = {
    ("mqtt-64", MOSQUITTO): [run(100.0), run(50.0), run(100.0)],
    ("mqtt-64", HEADWORKS): [run(400.0, 1.0), run(250.0, 1.0), run(100.0, 1.0)],
    ("kinesis-64", HEADWORKS): [
        run(200.0) | {"delivered_per_s": 190.0, "records_a_message": 0.002} for _ in range(3)
    ],
    ("tls-resumed", HEADWORKS): [run(30.0) | {"resumed": 1.0}],
    ("idle", MOSQUITTO): [{"connection_bytes": 1024.0}],
    ("idle", HEADWORKS): [{"connection_bytes": 4096.0}],
}


def test_a_case_has_a_name_of_its_own_and_what_it_is_beside_exists() -> None:
    assert len(set(NAMES)) == len(NAMES)
    assert {case.beside for case in CASES} <= {*NAMES, ""}
    assert all(case.frames <= case.window and case.window % case.frames == 0 for case in CASES)


def test_a_target_is_about_cases_that_exist_and_bounds_them() -> None:
    for target in TARGETS:
        assert target.case in NAMES
        assert target.times is None or target.times[0] in NAMES
        assert (target.at_least is None) != (target.at_most is None)


def test_a_name_chooses_the_cases_that_begin_so() -> None:
    assert chosen([]) == list(CASES)
    assert [case.name for case in chosen(["http", "mqtt-1"])] == ["mqtt-1", "http-100", "http-1"]
    assert chosen(["nothing"]) == []


def test_two_workers_get_cores_of_their_own_where_there_are_four() -> None:
    [two] = chosen(["workers-2"])
    assert cores_for(two, 4).load == ("2", "3")
    assert cores_for(two, 2).load == cores_for(CASES[0], 4).load == ("1",)
    assert {target.case for target in targets_for(4)} - {target.case for target in targets_for(2)} == {
        "workers-2"
    }


def test_a_ratio_is_the_median_of_the_ratios_of_each_round() -> None:
    assert ratio(RUNS["mqtt-64", HEADWORKS], RUNS["mqtt-64", MOSQUITTO], "per_s") == 4.0
    assert medians(RUNS["mqtt-64", HEADWORKS])["per_s"] == 250.0


@pytest.mark.parametrize(("ours", "theirs"), [([], [run(1.0)]), ([run(1.0)], []), ([run(1.0)], [run(0.0)])])
def test_there_is_no_ratio_to_what_was_not_measured(ours: list[Run], theirs: list[Run]) -> None:
    assert ratio(ours, theirs, "per_s") is None


def test_a_verdict_says_whether_a_target_is_reached() -> None:
    targets = [
        Target(case="mqtt-64", times=("mqtt-64", MOSQUITTO), at_least=4.0),
        Target(case="mqtt-64", at_least=251.0),
        Target(case="idle", figure="connection_bytes", at_most=3072),
        Target(case="http-1", at_least=1.0),
        Target(case="mqtt-64", figure="delivered_per_s", at_least=1.0),
    ]
    verdicts = judged(RUNS, targets)
    assert [verdict.value for verdict in verdicts] == [4.0, 250.0, 4096.0, None, None]
    assert [verdict.reached for verdict in verdicts] == [True, False, False, None, None]


def test_what_has_a_sink_is_beside_what_acknowledges_from_memory() -> None:
    of_kinesis = next(row for row in rows(RUNS, CASES) if row.case == "kinesis-64")
    assert of_kinesis.rate_ratio == 2.0
    assert of_kinesis.cpu_ratio == 1.0


def test_the_tables_say_what_was_measured_and_what_is_reached() -> None:
    out = StringIO()
    cases = chosen(["mqtt-64", "kinesis-64", "idle", "http-1", "tls-resumed"])
    table.show(
        Console(file=out, width=table.WIDTH),
        rows(RUNS, cases),
        cases,
        judged(RUNS, targets_for(2)),
        ["two workers were left out"],
    )
    words = " ".join(out.getvalue().split())
    assert "headworks 250 4.00 1.0 2.0 0.50 0.50 0.50 50%" in words
    assert "delivered, in 1 record for 500 190" in words
    assert "100% of them resumed" in words
    assert "idle connection: headworks 4.0 4.00" in words
    assert "at least 2 x mosquitto, mqtt-64 4.00 x yes" in words
    assert "at most 3.0 KiB 4.0 KiB no" in words
    assert "at least 12,000 - not measured" in words
    assert words.endswith("two workers were left out")


def test_what_is_exported_is_plain_data() -> None:
    data = json.loads(json.dumps(exported(RUNS, CASES, judged(RUNS, TARGETS), ["a note"])))
    assert data["notes"] == ["a note"]
    assert {row["case"] for row in data["rows"]} == {case for case, _ in RUNS}
    assert [target["reached"] for target in data["targets"] if target["case"] == "idle"] == [False]


def test_the_chart_has_two_bars_for_each_case_that_both_have_run() -> None:
    picture = ET.fromstring(chart.svg(rows(RUNS, CASES), CASES))  # noqa: S314  # made here
    bars = [
        each for each in picture.iter() if each.tag.endswith("rect") and each.get("height") == str(chart.BAR)
    ]
    assert [float(bar.get("width", "")) for bar in bars] == [chart.BAR_MAX, chart.BAR_MAX * 100 / 250]
    assert "4.00 times" in "".join(picture.itertext())


def test_two_workers_are_left_out_in_words_where_cores_are_missing() -> None:
    runs: Runs = {("workers-2", HEADWORKS): [run(1.0, 3.0)], ("mqtt-64", HEADWORKS): [run(1.0, 2.0)]}
    assert "1.50 times the CPU" in notes_on(runs, 2)[0]
    assert notes_on({("workers-2", HEADWORKS): [run(1.0)]}, 2)[0].endswith("share one core.")
    assert notes_on(runs, 4) == notes_on({}, 2) == []


def test_who_takes_part_is_who_has_a_program() -> None:
    programs = programs_in({"FLUENT_BIT": "/opt/fluent-bit", "AMQTT": ""})
    assert programs == {"fluent-bit": "/opt/fluent-bit"}
    assert [each.name for each in contenders(programs, pure=True)] == [
        MOSQUITTO,
        HEADWORKS,
        "headworks (pure)",
        "fluent-bit",
    ]
    assert set(OTHERS) == {"fluent-bit", "flashmq", "amqtt"}
