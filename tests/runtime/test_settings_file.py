from __future__ import annotations

from pathlib import Path

import pytest

from routing.gateway import routes_file
from runtime.settings_file import SettingsError

HEAD = """\
[authorizers.keys]
kind = "api_key"
[upstreams.a]
kind = "internal"
[[routes]]
name = "first"
method = "GET"
path = "/first"
upstream = "a"
authorizers = ["keys"]
[routes.retries]
attempts_max = 2
"""
SECOND = """\
[[routes]]
name = "second"
method = "GET"
path = "/second"
upstream = "a"
retries = { attempts_max = 1 }
authorizers = ["keys"]
"""


def line_of(folder: Path, text: str) -> int:
    path = folder / "routes.toml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        routes_file.load(path)
    found = str(caught.value).removeprefix(f"{path}:").partition(":")[0]
    assert found.isdecimal(), caught.value
    return int(found)


@pytest.mark.parametrize(
    ("was", "then", "line"),
    [
        ('authorizers = ["keys"]\n', "", 13),  # nobody could call: the entry
        ('upstream = "a"', 'upstream = "b"', 17),
        ('method = "GET"', 'method = "BREW"', 15),
        ("attempts_max = 1", "attempts_max = 99", 18),  # in an inline table
        ('path = "/second"', 'path = "/{a}/{a}"', 16),
        ('"second"', '"first"', 14),
        ("retries", "retires", 18),
        ("[[routes]]", "[[routes]", 13),  # not TOML
    ],
)
def test_an_error_in_the_second_route_names_its_line(tmp_path: Path, was: str, then: str, line: int) -> None:
    assert line_of(tmp_path, HEAD + SECOND.replace(was, then)) == line


def test_an_error_in_a_table_of_the_first_route_names_its_line(tmp_path: Path) -> None:
    assert line_of(tmp_path, HEAD.replace("attempts_max = 2", "attempts_max = 99") + SECOND) == 12


def test_an_upstream_without_what_it_needs_is_named_by_its_section(tmp_path: Path) -> None:
    assert line_of(tmp_path, HEAD + SECOND + '[upstreams.b]\nkind = "http"\n') == 20
