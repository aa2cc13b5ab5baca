from __future__ import annotations

import contextlib
from pathlib import Path

from commands.demo.node import TENANT, DevNode, Ports
from commands.demo.platform import SCOPES, Platform, PlatformPorts
from routing.tenancy.identity import Kind
from routing.tenancy.registry import Registry


def scopes_of(folder: Path, platform: Platform) -> set[str]:
    identifier = platform.key_file.read_text().split("_")[1]
    with contextlib.closing(Registry(folder / "registry.db")) as registry:
        return next(set(key.scopes) for key in registry.keys(TENANT) if key.id == identifier)


def test_the_key_of_an_earlier_version_is_replaced_and_one_of_this_is_kept(tmp_path: Path) -> None:
    platform = Platform(DevNode(tmp_path, Ports()), PlatformPorts())
    with contextlib.closing(Registry(tmp_path / "registry.db")) as registry:
        registry.add_tenant(TENANT, "default", 1.0)
        _, secret = registry.issue_key(TENANT, "demo", Kind.CALLER, 1.0, None, scopes=["devices:read"])
    platform.key_file.write_text(f"{secret}\n")
    platform.prepare()
    assert scopes_of(tmp_path, platform) == set(SCOPES)
    assert platform.key_file.stat().st_mode & 0o077 == 0
    kept = platform.key_file.read_text()
    platform.prepare()
    assert platform.key_file.read_text() == kept
