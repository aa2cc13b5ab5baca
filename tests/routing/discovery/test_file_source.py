from __future__ import annotations

from pathlib import Path

import pytest

from routing.discovery.file import FILE_BYTES_MAX, FileSource
from routing.discovery.source import DiscoveryError

ONE = '[[endpoints]]\naddress = "10.0.0.1:80"\nweight = 3\nzone = "a"\npriority = 1\n'
TWO = ONE + '[[endpoints]]\naddress = "[fd00::1]:80"\n'


async def test_a_file_says_who_is_there(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.toml"
    path.write_text(TWO)
    found = await FileSource(path).poll()
    first, second = found.endpoints
    assert (first.address, first.weight, first.zone, first.priority) == ("10.0.0.1:80", 3, "a", 1)
    assert (second.address, second.weight) == ("[fd00::1]:80", 1)


async def test_what_changes_is_seen_at_the_next_poll_and_a_comment_is_no_change(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.toml"
    path.write_text(ONE)
    source = FileSource(path)
    first = await source.poll()
    path.write_text(f"# the same\n{ONE}")
    assert (await source.poll()).revision == first.revision
    path.write_text(TWO)
    assert (await source.poll()).revision != first.revision
    path.write_text("")
    assert (await source.poll()).endpoints == ()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (ONE[:-5], "endpoints.toml"),
        ("[[endpoints]]\n", "address"),
        ('[[endpoints]]\naddress = "10.0.0.1:80"\nwieght = 1\n', "wieght"),
        ('[[endpoints]]\naddress = "10.0.0.1:80"\nweight = -1\n', "weight"),
        ('[[endpoints]]\naddress = "10.0.0.1"\n', "10.0.0.1"),
        ('[[endpoints]]\naddress = "10.0.0.1:99999"\n', "99999"),
        ('[[endpoints]]\naddress = "fd00::1:80"\n', "fd00"),
        ('[[endpoints]]\naddress = "a b:80"\n', "a b"),
    ],
)
async def test_a_bad_file_is_an_error_that_says_what_is_wrong(tmp_path: Path, text: str, names: str) -> None:
    path = tmp_path / "endpoints.toml"
    path.write_text(text)
    with pytest.raises(DiscoveryError, match=names):
        await FileSource(path).poll()


async def test_a_file_that_is_missing_too_large_or_too_long_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.toml"
    with pytest.raises(DiscoveryError):
        await FileSource(path).poll()
    path.write_text("#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(DiscoveryError, match="bytes"):
        await FileSource(path).poll()
    path.write_text("".join(f'[[endpoints]]\naddress = "h{number}:1"\n' for number in range(1025)))
    with pytest.raises(DiscoveryError, match="1025 endpoints"):
        await FileSource(path).poll()


async def test_an_address_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.toml"
    path.write_text(ONE + ONE.replace("weight = 3", "weight = 9"))
    (only,) = (await FileSource(path).poll()).endpoints
    assert only.weight == 3
