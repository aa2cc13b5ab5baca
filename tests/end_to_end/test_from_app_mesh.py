"""The rehearsal of the guide, word for word, but for its ports; and templates of all kinds, imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.mesh_rig import port

pytestmark = [pytest.mark.end_to_end]
GUIDE = Path(__file__).parents[2] / "docs/guides/from-app-mesh.md"
PORTS = ("8470", "18000", "9001", "9002", "9081", "9082", "15011", "15012", "15001", "9911", "9912", "9901")
ENDS = "trap 'kill $(jobs -p) 2>/dev/null' EXIT\nset -euo pipefail\n"


@pytest.mark.timeout(240)
def test_the_rehearsal_works_as_it_stands(tmp_path: Path) -> None:
    text = GUIDE.read_text().partition("## A rehearsal on one machine")[2]
    script = ENDS + "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    for each in PORTS:
        assert each in script
        script = re.sub(rf"\b{each}\b", str(port()), script)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    said = subprocess.run(
        ["timeout", "200", "bash", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    log = (tmp_path / "serve.log").read_text() if (tmp_path / "serve.log").exists() else ""
    assert said.returncode == 0, f"{said.stdout[-3000:]}\n{said.stderr[-3000:]}\n{log[-2000:]}"
    assert "weightedTargets[0].virtualNode" in said.stdout
    assert "NACKED" not in said.stdout
