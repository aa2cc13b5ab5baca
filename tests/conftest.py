"""In CI nothing is skipped but what the machine does not allow: the rest is installed by `make setup`."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

NOT_POSSIBLE = "not possible here"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if os.environ.get("CI") and report.skipped and NOT_POSSIBLE not in str(report.longrepr):
        report.outcome = "failed"
    return report
