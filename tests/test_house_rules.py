"""The docs name what the program has; links lead somewhere; decisions have their four parts."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import msgspec
import pytest

from ingest import counters
from ingest.outcome import REFUSALS, Outcome
from ingest.settings import Listener, Settings, Stream
from routing.gateway import malformed
from routing.gateway import settings as gateway_settings
from routing.gateway.routes_file import Routes
from routing.limits.plan import Plan
from routing.limits.usage import SLUGS
from routing.mesh.api import settings as mesh_settings
from routing.upstream.call import Reason

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


def fields_of(*structs: type[msgspec.Struct]) -> set[str]:
    """Return the names of all fields of structs, and of those in them."""
    names: set[str] = set()
    waiting, seen = [*structs], set(structs)
    while waiting:
        for field in msgspec.structs.fields(waiting.pop()):
            names.add(field.name)
            for kind in (field.type, *getattr(field.type, "__args__", ())):
                if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind not in seen:
                    seen.add(kind)
                    waiting.append(kind)
    return names


@pytest.mark.parametrize("name", sorted(fields_of(gateway_settings.Settings, Routes)))
def test_every_setting_of_the_api_gateway_is_in_the_docs(name: str) -> None:
    text = "".join(path.read_text() for path in (ROOT / "docs/guides").glob("*.md"))
    assert re.search(rf"\b{name}\b", text)


@pytest.mark.parametrize("name", sorted(fields_of(mesh_settings.Settings)))
def test_every_setting_of_the_mesh_api_is_in_its_guide(name: str) -> None:
    assert re.search(rf"\b{name}\b", (ROOT / "docs/guides/mesh.md").read_text())


def api_refusals() -> list[str]:
    """Return the names of what the API gateway refuses, as its code has them."""
    names = {reason.value for reason in Reason} | set(SLUGS.values()) | {slug for _, slug in malformed.NAMES}
    for path in (ROOT / "routing/gateway").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in {
                "Refused",
                "Denied",
                "problem",
            }:
                found = [part.value for part in node.args[:2] if isinstance(part, ast.Constant)]
                names |= {str(value) for value in found}
    slugs = {name for name in names if re.fullmatch(r"[a-z]+(-[a-z]+)*", name)}
    return sorted(slugs - {"body"})  # which is where a problem is


@pytest.mark.parametrize("name", api_refusals())
def test_every_refusal_of_the_api_gateway_is_in_the_docs(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs/guides/api-refusals.md").read_text()


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
