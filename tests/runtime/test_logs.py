from __future__ import annotations

import io
import json
import sys

import pytest

from runtime.logs import make_log


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class ClosedPipe(io.StringIO):
    def write(self, text: str) -> int:
        del text
        raise BrokenPipeError


def test_a_line_is_one_json_object_with_time_and_level(capsys: pytest.CaptureFixture[str]) -> None:
    make_log("info", "auto").bind(worker=3).warning("spool_full", bytes=7)
    line = json.loads(capsys.readouterr().err)
    assert line.pop("timestamp").endswith("Z")
    assert line == {"event": "spool_full", "level": "warning", "worker": 3, "bytes": 7}


def test_what_is_below_the_level_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    log = make_log("warning", "json")
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    log.critical("e")
    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == ["c", "d", "e"]


def test_an_exception_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    make_log("info", "json").error("unexpected", exc_info=ValueError("what"))
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: what" in json.loads(line)["exception"]


@pytest.mark.parametrize(("form", "is_json"), [("auto", False), ("console", False), ("json", True)])
def test_a_terminal_gets_colours_unless_json_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, form: str, *, is_json: bool
) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    make_log("info", form).info("starting")
    assert stream.getvalue().startswith("{") is is_json


def test_a_log_that_nobody_reads_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", ClosedPipe())
    make_log("info", "json").error("disk_refuses")
    closed = io.StringIO()
    monkeypatch.setattr(sys, "stderr", closed)
    log = make_log("info", "json")
    closed.close()
    log.error("disk_refuses")
