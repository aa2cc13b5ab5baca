"""What `make test-compiled` promises: that it is the compiled modules which it tests."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.app import is_compiled

ROOT = Path(__file__).parents[1]
AS_COMPILED = "HEADWORKS_COMPILED" in os.environ


def test_the_modules_are_what_this_run_is_to_test() -> None:
    assert is_compiled() is AS_COMPILED
    shown = subprocess.run(
        [sys.executable, "-m", "commands.cli", "--version"], capture_output=True, text=True, check=True
    ).stdout
    assert shown.rstrip().endswith("(compiled)" if AS_COMPILED else "(pure Python)")


def test_what_is_hot_is_there_and_defines_no_struct(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiled class forgets the arguments of its class statement, such as `frozen=True`."""
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    for name in runpy.run_path(str(ROOT / "setup.py"))["HOT"]:
        assert "msgspec.Struct" not in (ROOT / name).read_text(), name
