"""What Locust is told in batches is what it would have counted one by one; Locust in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
from locust.env import Environment
from loadtests.users.tally import Tally

batched, single = Environment(), Environment()
tally = Tally(batched)
for number in range(1000):
    tally.took(("MQTT", "pumps"), number / 1000, 10)
    single.stats.log_request("MQTT", "pumps", number, 10)
    if number % 100 == 99:
        tally.failed(("MQTT", "pumps"), "malformed")
        single.stats.log_request("MQTT", "pumps", None, 0)
        single.stats.log_error("MQTT", "pumps", "malformed")
        tally.flush()
tally.flush()
for one, other in (
    (batched.stats.get("pumps", "MQTT"), single.stats.get("pumps", "MQTT")),
    (batched.stats.total, single.stats.total),
):
    for field in (
        "num_requests", "num_none_requests", "num_failures", "total_response_time", "min_response_time",
        "max_response_time", "total_content_length", "response_times",
    ):
        assert getattr(one, field) == getattr(other, field), field
    assert sum(one.num_reqs_per_sec.values()) == sum(other.num_reqs_per_sec.values())
assert [e.occurrences for e in batched.stats.errors.values()] == [10]
assert batched.stats.errors.keys() == single.stats.errors.keys()
"""


def test_a_batch_counts_as_much_as_one_by_one() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=root, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
