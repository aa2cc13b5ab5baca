"""The process as `headworks serve` sets it up, the fixtures, and one table a file."""

from __future__ import annotations

import sys
import tempfile
from collections import defaultdict
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.session import PerformanceRegression

from bench.rig import Rig
from ingest.app import SWITCH_INTERVAL_S
from runtime.garbage import settle

VAR = Path(__file__).parents[1] / "var"


@pytest.fixture(scope="session", autouse=True)
def _process() -> None:
    settle()
    sys.setswitchinterval(SWITCH_INTERVAL_S)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    made.close()


@pytest.fixture
def disk() -> Iterator[Path]:
    """Give a folder beside the code: /tmp may be memory, where an fsync costs nothing."""
    VAR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=VAR, prefix="bench-") as folder:
        yield Path(folder)


def pytest_benchmark_group_stats(benchmarks: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Print one table a file."""
    groups = defaultdict(list)
    for each in benchmarks:
        groups[each["fullname"].partition("::")[0]].append(each)
    return sorted(groups.items())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary() -> Generator[None, None, None]:
    """End with the list of what became slower, and not with a traceback below it."""
    try:
        yield
    except PerformanceRegression as error:
        pytest.exit(str(error), returncode=1)
