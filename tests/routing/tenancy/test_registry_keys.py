"""API keys: scopes, plans, rotation with an overlap, when they were last used, and files of before."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

from ingest.authentication import Authenticator, Door, Peer
from ingest.events import Events
from ingest.membership import Membership
from ingest.settings import Settings
from routing.tenancy.identity import Credential, Identity, Kind, Unauthenticated
from routing.tenancy.registry import USE_EVERY_S, USED_MAX, Registry, RegistryError

OLD_SCHEMA = """
CREATE TABLE tenants (
    name TEXT PRIMARY KEY, plan TEXT NOT NULL, status TEXT NOT NULL, created_s REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE devices (
    tenant TEXT NOT NULL, name TEXT NOT NULL, status TEXT NOT NULL, created_s REAL NOT NULL,
    PRIMARY KEY (tenant, name)
) WITHOUT ROWID;
CREATE TABLE api_keys (
    id TEXT PRIMARY KEY, hash BLOB NOT NULL, tenant TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
    status TEXT NOT NULL, created_s REAL NOT NULL, expires_s REAL
) WITHOUT ROWID;
"""
# SHA-256 of "s".
HASH_OF_S = bytes.fromhex("043a718774c572bd8a25adbeb1bfcd5c0256ae11cecf9f9c3f925d0e52beaf89")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture
def registry(path: Path) -> Registry:
    return Registry(path)


def test_a_key_has_scopes_and_a_plan(registry: Registry) -> None:
    wanted = ["telemetry:read", "devices:read", "devices:read"]
    issued, secret = registry.issue_key("t", "jo", Kind.CALLER, 1.0, None, scopes=wanted, plan="gold")
    key = registry.key_of(secret, 2.0)
    assert key == issued
    assert (key.scopes, key.plan, key.kind) == (("devices:read", "telemetry:read"), "gold", "caller")


@pytest.mark.parametrize("scope", ["devices", "devices:", "Devices:read", "devices:read x:y", "*", ""])
def test_what_is_no_scope_is_not_given(registry: Registry, scope: str) -> None:
    with pytest.raises(RegistryError, match="resource:action"):
        registry.issue_key("t", "jo", Kind.CALLER, 1.0, None, scopes=[scope])
    with pytest.raises(RegistryError, match="at most"):
        registry.issue_key("t", "jo", Kind.CALLER, 1.0, None, scopes=[f"a{n}:read" for n in range(65)])
    assert registry.keys(None) == []


def test_both_secrets_are_good_while_a_rotation_overlaps(registry: Registry) -> None:
    key, old = registry.issue_key("t", "jo", Kind.CALLER, 0.0, expires_s=1000.0, scopes=["a:b"])
    new = registry.rotate_key(key.id, now_s=10.0, overlap_s=60.0)
    assert new != old
    for shown, until_s in ((old, 70.0), (new, 1000.0)):
        found = registry.key_of(shown, until_s - 0.1)
        assert found is not None
        assert (found.id, found.scopes, found.expires_s) == (key.id, ("a:b",), until_s)
        assert registry.key_of(shown, until_s) is None


def test_a_rotation_without_overlap_ends_the_old_secret_at_once(registry: Registry) -> None:
    key, old = registry.issue_key("t", "jo", Kind.CALLER, 0.0, None)
    new = registry.rotate_key(key.id, 10.0, 0.0)
    assert registry.key_of(old, 10.0) is None
    assert registry.key_of(new, 10.0) is not None


def test_of_two_rotations_the_oldest_secret_is_gone(registry: Registry) -> None:
    key, first = registry.issue_key("t", "jo", Kind.CALLER, 0.0, None)
    second = registry.rotate_key(key.id, 10.0, 60.0)
    third = registry.rotate_key(key.id, 11.0, 60.0)
    assert [registry.key_of(shown, 12.0) is not None for shown in (first, second, third)] == [
        False,
        True,
        True,
    ]


def test_the_overlap_does_not_outlive_the_key(registry: Registry) -> None:
    key, old = registry.issue_key("t", "jo", Kind.CALLER, 0.0, expires_s=20.0)
    registry.rotate_key(key.id, 10.0, 60.0)
    found = registry.key_of(old, 11.0)
    assert found is not None
    assert found.expires_s == 20.0
    assert registry.key_of(old, 20.0) is None


def test_revoking_ends_every_secret(registry: Registry) -> None:
    key, old = registry.issue_key("t", "jo", Kind.CALLER, 0.0, None)
    new = registry.rotate_key(key.id, 10.0, 60.0)
    registry.revoke_key(key.id)
    assert registry.key_of(old, 11.0) is None
    assert registry.key_of(new, 11.0) is None
    for rotated, why in ((key.id, "revoked"), ("none", "no key")):
        with pytest.raises(RegistryError, match=why):
            registry.rotate_key(rotated, 12.0, 60.0)


def test_a_key_that_never_rotated_has_no_second_secret(registry: Registry) -> None:
    key, _ = registry.issue_key("t", "jo", Kind.CALLER, 0.0, None)
    for wrong in ("", "\0" * 32, "0" * 64):
        assert registry.key_of(f"hw_{key.id}_{wrong}", 1.0) is None


def test_the_last_use_is_written_once_a_minute_and_looks_like_no_change(
    path: Path, registry: Registry
) -> None:
    other = Registry(path)
    key, secret = registry.issue_key("t", "jo", Kind.CALLER, 0.0, None)
    assert other.changed()
    registry.key_of(secret, 100.0)
    assert registry.keys("t")[0].last_used_s is None, "not written yet"
    assert registry.flush_use() == 1
    registry.key_of(secret, 100.0 + USE_EVERY_S - 1)
    assert registry.flush_use() == 0
    registry.key_of(secret, 100.0 + USE_EVERY_S)
    assert registry.flush_use() == 1
    assert registry.flush_use() == 0
    found = other.key(key.id)
    assert found is not None
    assert found.last_used_s == 100.0 + USE_EVERY_S
    assert not other.changed(), "or every connection would be looked at again"
    registry.key_of("hw_" + key.id + "_wrong", 500.0)
    assert registry.flush_use() == 0, "a wrong secret is no use"


def test_how_many_uses_wait_is_limited(registry: Registry) -> None:
    for number in range(USED_MAX + 5):
        registry.note_use(str(number), 1.0)
    assert registry.flush_use() == USED_MAX
    registry.note_use("another", 1.0)
    assert registry.flush_use() == 1
    registry.note_use("one more", 2.0)
    registry.flush_use()
    assert len(registry._noted_s) <= USED_MAX + 1


def make_old(path: Path) -> None:
    with sqlite3.connect(path) as old:
        old.executescript(OLD_SCHEMA)
        old.execute(
            "INSERT INTO api_keys VALUES ('abc', ?, 't', 'd', 'device', 'active', 1.0, NULL)", (HASH_OF_S,)
        )
    old.close()


def test_a_file_of_before_is_brought_up_to_date(path: Path) -> None:
    make_old(path)
    registry = Registry(path)
    key = registry.key_of("hw_abc_s", 2.0)
    assert key is not None
    assert (key.tenant, key.scopes, key.plan, key.last_used_s) == ("t", (), "", None)
    new = registry.rotate_key("abc", 3.0, 10.0)
    assert Registry(path).key_of(new, 4.0) is not None
    assert Registry(path).key_of("hw_abc_s", 4.0) is not None


def test_many_processes_may_bring_it_up_to_date_at_once(path: Path) -> None:
    make_old(path)
    failed: list[Exception] = []
    together = threading.Barrier(8)

    def open_it() -> None:
        together.wait()
        try:
            Registry(path).close()
        except RegistryError as error:
            failed.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


class Silent(Events):
    """Events that nobody hears."""

    def __init__(self) -> None:
        pass


def test_a_key_for_the_api_publishes_no_telemetry(registry: Registry) -> None:
    member = Membership(Settings(), registry, is_revoked=lambda _: False, events=Silent())
    authenticator = Authenticator(certificate=member.of_certificate, jwt=None, api_key=member.of_key)
    door = Door("http", frozenset({Credential.API_KEY}))
    peer = Peer("127.0.0.1:1", None)
    _, device = registry.issue_key("t", "d", Kind.DEVICE, 0.0, None)
    assert authenticator.of_http(door, peer, None, device).kind is Kind.DEVICE
    _, caller = registry.issue_key("t", "d", Kind.CALLER, 0.0, None, scopes=["telemetry:write"])
    with pytest.raises(Unauthenticated, match="not for telemetry"):
        authenticator.of_http(door, peer, None, caller)
    who = Identity(tenant="t", name="d", kind=Kind.CALLER, credential=Credential.API_KEY)
    assert not who.may_publish_for("t", "d")
