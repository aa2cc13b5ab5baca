from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import Gateway, gateway

LIMITS = """
[limits.default]
device_messages_per_s = 0
device_bytes_per_s = 0
device_connections_max = 0
[limits.refusing]
device_messages_per_s = 5
burst_s = 1
over_limit = "refuse"
[limits.pausing]
messages_per_s = 50
burst_s = 1
[limits.few]
connections_max = 3
[[streams]]
name = "image"
kind = "raw"
payload_bytes_max = 1000
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder: Path = tmp_path_factory.mktemp("node")
    with gateway(folder, workers=2, extra=LIMITS) as started:
        yield started


@pytest.fixture(scope="session")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One worker that waits for nobody, takes large bodies, and limits no device."""
    http = "[http]\nrequest_deadline_s = 0.5\nkeep_alive_s = 1.0\ninflated_bytes_max = 67108864\n"
    folder: Path = tmp_path_factory.mktemp("hasty")
    with gateway(folder, extra=LIMITS + http) as started:
        yield started
