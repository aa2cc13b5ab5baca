from __future__ import annotations

import asyncio
import io
import json
import sys

import pytest

from runtime.logs import Lines, make_log


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


class Pipe(io.BytesIO):
    """Counts how often it is written to; may be closed at the other end."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0
        self.broken = False

    def write(self, data: object) -> int:
        self.writes += 1
        if self.broken:
            raise BrokenPipeError
        return super().write(data)  # type: ignore[arg-type]


async def test_lines_of_one_turn_of_the_loop_are_written_together() -> None:
    pipe = Pipe()
    lines = Lines(pipe)
    for turn in range(2):
        for number in range(3):
            lines.add(f"{turn}{number}".encode())
        await asyncio.sleep(0)
    assert pipe.getvalue() == b"00\n01\n02\n10\n11\n12\n"
    assert pipe.writes == 2
    lines.add(b"last")
    lines.flush()
    assert pipe.getvalue().endswith(b"12\nlast\n")


async def test_lines_that_nobody_reads_stop_nothing() -> None:
    pipe = Pipe()
    lines = Lines(pipe)
    pipe.broken = True
    lines.add(b"lost")
    await asyncio.sleep(0)
    pipe.broken = False
    lines.add(b"read")
    await asyncio.sleep(0)
    assert pipe.getvalue() == b"read\n"
