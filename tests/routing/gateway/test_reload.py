from __future__ import annotations

from pathlib import Path

import pytest

from routing.gateway.reload import Watch
from runtime.settings_file import SettingsError


class Reader:
    """Reads a file, which may change while it is in use."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "routes.toml"
        self.path.write_text("one")
        self.used: list[str] = []
        self.told: list[str | None] = []
        self.meanwhile = ""

    def make(self, path: Path) -> str:
        text = path.read_text()
        if "bad" in text:
            raise SettingsError("line 1")
        return text

    def use(self, made: str) -> None:
        self.used.append(made)
        if self.meanwhile:
            self.path.write_text(self.meanwhile)
            self.meanwhile = ""

    def watch(self) -> Watch:
        return Watch(self.path, make=self.make, use=self.use, also=list, reloaded=self.told.append)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return Reader(tmp_path)


def test_what_changes_is_taken_once(reader: Reader) -> None:
    watch = reader.watch()
    watch.poll()
    reader.path.write_text("second")
    watch.poll()
    watch.poll()
    assert (reader.used, reader.told) == (["second"], [None])
    watch.poll(force=True)
    assert reader.used == ["second", "second"]


def test_a_bad_one_leaves_the_last_good_and_is_told(reader: Reader) -> None:
    watch = reader.watch()
    reader.path.write_text("bad one")
    watch.poll()
    assert (reader.used, watch.error) == ([], "line 1")
    reader.path.write_text("good again")
    watch.poll()
    assert (reader.used, watch.error) == (["good again"], None)


def test_what_changes_while_it_is_taken_is_taken_next(reader: Reader) -> None:
    watch = reader.watch()
    reader.meanwhile = "the third"
    reader.path.write_text("second")
    watch.poll()
    watch.poll()
    assert reader.used == ["second", "the third"]
