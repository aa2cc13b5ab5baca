from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.device_service import Service, device_service


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with device_service(tmp_path / "node") as opened:
        yield opened
