from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from runtime.garbage import THRESHOLDS, settle


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_what_was_there_is_left_alone_and_the_rest_looked_at_seldom() -> None:
    settle()
    assert gc.get_threshold() == THRESHOLDS
    assert gc.get_freeze_count() > 1000
