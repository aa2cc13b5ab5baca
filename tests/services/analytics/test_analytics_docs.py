from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from services.analytics.app import operations
from services.analytics.metrics import AnalyticsMetrics
from services.analytics.store.writer import Stored
from services.analytics.watermark import Dropped
from services.settings import Analytics, WindowSize

GUIDE = (Path(__file__).parents[3] / "docs/guides/analytics.md").read_text()
SETTINGS = [field.name for kind in (Analytics, WindowSize) for field in msgspec.structs.fields(kind)]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_in_the_guide(name: str) -> None:
    assert re.search(rf"^({name} = |\[\[analytics\.{name}\]\])", GUIDE, re.MULTILINE)


@pytest.mark.parametrize("reason", Dropped, ids=lambda reason: reason.value)
def test_every_reason_to_drop_a_value_is_in_the_guide(reason: Dropped) -> None:
    assert f"`{reason.value}`" in GUIDE


def test_every_metric_is_in_the_guide() -> None:
    families = list(AnalyticsMetrics(CollectorRegistry(), Stored()).collect())
    assert len(families) == 8
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}`" in GUIDE


def test_every_operation_is_in_the_guide() -> None:
    for operation in operations():
        rest = operation.path.removeprefix("/v1/tenants/{tenant}")
        assert f"`{operation.method} …{rest}" in GUIDE, operation.name
