"""The docs name what the program has; links lead somewhere; decisions have their four parts."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from ingest import counters
from ingest.outcome import REFUSALS, Outcome
from ingest.settings import Listener, Settings, Stream
from routing.limits.plan import Plan

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def settings_fields() -> list[str]:
    structs: list[type[msgspec.Struct]] = [Listener, Plan, Stream]
    for field in msgspec.structs.fields(Settings):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            structs.append(field.type)  # noqa: PERF401  # a comprehension hides the type
    return sorted({field.name for struct in structs for field in msgspec.structs.fields(struct)})


@pytest.mark.parametrize("name", settings_fields())
def test_every_setting_is_in_the_docs(name: str) -> None:
    text = (ROOT / "docs/guides/settings.md").read_text()
    assert re.search(rf"^(# required: )?{name} = ", text, re.MULTILINE)


@pytest.mark.parametrize("family", counters.COUNTERS, ids=lambda family: family.name)
def test_every_counter_is_in_the_docs(family: counters.Family) -> None:
    assert f"headworks_{family.name}" in (ROOT / "docs/guides/metrics.md").read_text()


@pytest.mark.parametrize("outcome", REFUSALS, ids=str)
def test_every_refusal_is_in_the_docs(outcome: Outcome) -> None:
    assert f"`{outcome.name.lower()}`" in (ROOT / "docs/guides/operating.md").read_text()


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def hot_lines() -> list[str]:
    files = [
        path
        for folder in ("ingest", "protocols", "routing", "runtime")
        for path in (ROOT / folder).rglob("*.py")
    ]
    return sorted(line for path in files for line in re.findall(r"Hot: .*", path.read_text()))


@pytest.mark.parametrize("line", hot_lines())
def test_what_is_hot_names_a_benchmark_that_exists(line: str) -> None:
    named = re.match(r"Hot: guarded by (bench/\w+\.py)::(\w+)\.", line)
    assert named
    assert f"\ndef {named[2]}(" in (ROOT / named[1]).read_text()


@pytest.mark.parametrize("page", sorted((ROOT / "docs/decisions").glob("*.md")), ids=lambda page: page.name)
def test_a_decision_has_its_four_parts(page: Path) -> None:
    text = page.read_text()
    assert re.match(rf"# {page.name[:4]}: ", text)
    for part in ("Context", "Decision", "Consequences", "What would change our mind"):
        assert f"**{part}.**" in text


def test_a_decision_has_a_number_of_its_own() -> None:
    numbers = [path.name[:4] for path in sorted((ROOT / "docs/decisions").glob("*.md"))]
    assert numbers == [f"{number:04}" for number in range(1, len(numbers) + 1)]
