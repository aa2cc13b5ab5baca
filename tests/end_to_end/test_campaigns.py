"""`make campaign` in small: Locust in its own processes, a real node; the exit code is the judgement."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.end_to_end

SMALL = ["--devices", "100", "--duration", "6"]


def campaign(folder: Path, *words: str) -> tuple[int, list[dict[str, Any]], str]:
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.campaign", "--json", "--folder", str(folder), *words],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def test_a_steady_campaign_keeps_its_promise_and_leaves_a_report(tmp_path: Path) -> None:
    code, (outcome,), words = campaign(tmp_path, "steady", *SMALL, "--period", "1", "--p99-ms", "5000")
    assert code == 0, words
    ledger = outcome["figures"]["ledger"]
    assert ledger["delivered"] == ledger["acknowledged"] == ledger["sent"] > 300
    assert ledger["lost"] == ledger["out_of_order"] == ledger["unexplained"] == ledger["uninvited"] == 0
    page = (tmp_path / "steady/report.html").read_text()
    assert page.index("The promise") < page.rindex("window.templateArgs")
    assert '"name": "pumps"' in page


def test_kill_9_loses_nothing_with_two_workers_of_locust(tmp_path: Path) -> None:
    words = ["kill-nine", "--devices", "100", "--duration", "8", "--processes", "2", "--p99-ms", "10000"]
    code, (outcome,), said = campaign(tmp_path, *words)
    assert code == 0, said
    assert "after 4.4 s: kill node" in said
    figures = outcome["figures"]
    assert figures["ledger"]["lost"] == figures["ledger"]["unexplained"] == 0
    assert figures["fleet"]["lost"] >= 100
    assert figures["fleet"]["up"] == figures["fleet"]["devices"]


def test_a_broken_promise_is_a_failure_that_names_its_part(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text(
        'what = "Nobody answers so soon, and nobody refuses."\nload_s = 3\n[promise]\np99_ms = 0.001\n'
        '[[groups]]\nname = "meters"\nspeaks = "mqtt"\ndevices = 20\nperiod_s = 0.2\n'
        'payload = "malformed"\npayload_share = 0.2\n'
    )
    code, (outcome,), words = campaign(tmp_path, str(bad))
    assert code == 1, words
    broken = [part["what"] for part in outcome["promise"] if not part["kept"]]
    assert broken == ["nothing was refused", "99 of 100 answers within 0.001 ms"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["stedy"], "there is no campaign stedy; did you mean steady?"),
        (["steady", "--devices", "0"], "--devices, --duration and --period must be above 0"),
        (["kill-nine", "--target", "127.0.0.1"], "kill_node happens to a node of one's own only"),
        (["steady", "--target", "h", "--to-mqtt", "nowhere"], "nowhere: write host:port"),
    ],
)
def test_wrong_use_is_said(tmp_path: Path, words: list[str], said: str) -> None:
    code, outcomes, error = campaign(tmp_path, *words)
    assert (code, outcomes) == (2, [])
    assert said in error


def test_what_is_wrong_in_a_campaign_is_named_by_its_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text('what = "A test."\nload_s = 3\nsettle = 3\n[promise]\np99_ms = 1\n')
    code, _, error = campaign(tmp_path, str(bad))
    assert code == 2
    assert "bad.toml, line 3: there is no field settle; did you mean settle_s?" in error


def test_without_a_name_the_campaigns_are_listed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.campaign"], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0
    assert "reconnect-storm" in done.stdout
    assert not list(tmp_path.iterdir())
