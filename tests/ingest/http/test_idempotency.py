"""`Idempotency-Key`: whose a key is, what the same request is, and what is known of it at any time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ingest.http.idempotency import Answered, Idempotency, Known, digest_of, load
from routing.limits.shared_table import LocalTable
from routing.tenancy.identity import Credential, Identity, Kind

NAMES = ("acme", "pump", "pressure")
DIGEST = digest_of(NAMES, b"body")
NOW_S = 1e9


def identity(kind: Kind = Kind.DEVICE, tenant: str = "acme", name: str = "pump") -> Identity:
    return Identity(tenant=tenant, name=name, kind=kind, credential=Credential.CERTIFICATE)


def directory(capacity: int = 8) -> LocalTable:
    return LocalTable(capacity=capacity, expired=lambda _: False)


def keys_of(
    table: LocalTable,
    *,
    worker: int = 0,
    epoch: int = 1,
    unsettled: Callable[[int, int], bool] | None = None,
    full: Callable[[], None] = lambda: None,
) -> Idempotency:
    return Idempotency(
        table,
        node="n",
        worker=worker,
        epoch=epoch,
        boot=f"b.{worker}",
        unsettled=unsettled or (lambda *_: True),
        full=full,
        keep_s=60.0,
    )


def finish(keys: Idempotency, record_key: bytes, digest: bytes = DIGEST) -> None:
    keys.done(record_key, keys.statement(record_key, digest, (7, 2, 3), NOW_S))


def test_the_same_request_is_answered_with_the_records_of_the_first() -> None:
    keys = keys_of(directory())
    known, _, record_key = keys.begin(identity(), "k", DIGEST, NOW_S)
    assert known is Known.NEW
    assert keys.begin(identity(), "k", DIGEST, NOW_S)[0] is Known.UNDER_WAY
    finish(keys, record_key)
    assert keys.begin(identity(), "k", DIGEST, NOW_S)[:2] == (Known.DONE, Answered("n-b.0-7", 2, 3))
    assert keys.begin(identity(), "k", DIGEST, NOW_S + 61)[0] is Known.NEW, "it is kept no longer than said"


@pytest.mark.parametrize(
    "other",
    [
        digest_of(NAMES, b"other"),
        digest_of(("beta", "pump", "pressure"), b"body"),
        digest_of(("acme", "valve", "pressure"), b"body"),
        digest_of(("acme", "pump", "flow"), b"body"),
    ],
    ids=["body", "tenant", "device", "stream"],
)
@pytest.mark.parametrize("done", [False, True])
def test_a_key_is_good_for_one_target_and_one_body(other: bytes, done: bool) -> None:
    keys = keys_of(directory())
    record_key = keys.begin(identity(), "k", DIGEST, NOW_S)[2]
    if done:
        finish(keys, record_key)
    assert keys.begin(identity(), "k", other, NOW_S)[:2] == (Known.OTHER_REQUEST, None)


@pytest.mark.parametrize(
    "other",
    [identity(Kind.GATEWAY), identity(tenant="beta"), identity(name="valve")],
    ids=["kind", "tenant", "name"],
)
def test_two_identities_never_share_a_key(other: Identity) -> None:
    keys = keys_of(directory())
    keys.begin(identity(), "k", DIGEST, NOW_S)
    assert keys.begin(other, "k", DIGEST, NOW_S)[0] is Known.NEW


def test_a_key_whose_request_was_refused_is_free() -> None:
    keys = keys_of(directory())
    keys.abandon(keys.begin(identity(), "k", DIGEST, NOW_S)[2])
    assert keys.begin(identity(), "k", digest_of(NAMES, b"mended"), NOW_S)[0] is Known.NEW


def test_what_an_earlier_run_kept_is_known_until_it_expires() -> None:
    first = keys_of(directory())
    record_key = first.begin(identity(), "k", DIGEST, NOW_S)[2]
    _, row = first.statement(record_key, DIGEST, (7, 2, 3), NOW_S)
    key, value, expires_s = row
    table = directory()
    load(table, [(key, value, expires_s)], NOW_S)
    later = keys_of(table)
    assert later.begin(identity(), "k", DIGEST, NOW_S)[:2] == (Known.DONE, Answered("n-b.0-7", 2, 3))
    table = directory()
    load(table, [(key, value, expires_s)], NOW_S + 61)
    too_late = keys_of(table)
    assert too_late.begin(identity(), "k", DIGEST, NOW_S + 61)[0] is Known.NEW


def test_a_full_directory_still_takes_in_the_end_of_what_it_knows() -> None:
    table = directory(capacity=1)
    keys = keys_of(table)
    record_key = keys.begin(identity(), "k", DIGEST, NOW_S)[2]
    stranger = keys.statement(bytes(16), DIGEST, (1, 0, 1), NOW_S)[1]
    mine = keys.statement(record_key, DIGEST, (7, 2, 3), NOW_S)[1]
    load(table, [(each[0], each[1], each[2]) for each in (stranger, mine)], NOW_S)
    assert keys.begin(identity(), "k", DIGEST, NOW_S)[0] is Known.DONE
    assert keys.begin(identity(), "unknown", DIGEST, NOW_S)[0] is Known.NEW


def test_a_claim_of_a_dead_worker_is_under_way_until_its_spool_was_read() -> None:
    table, unsettled = directory(), True
    dead = keys_of(table, epoch=1)
    record_key = dead.begin(identity(), "k", DIGEST, NOW_S)[2]
    _, row = dead.statement(record_key, DIGEST, (7, 2, 3), NOW_S)
    sibling = keys_of(
        table, worker=1, unsettled=lambda worker, epoch: (worker, epoch) == (0, 1) and unsettled
    )
    assert sibling.begin(identity(), "k", DIGEST, NOW_S)[0] is Known.UNDER_WAY
    load(table, [(row[0], row[1], row[2])], NOW_S)
    assert sibling.begin(identity(), "k", DIGEST, NOW_S)[:2] == (Known.DONE, Answered("n-b.0-7", 2, 3))
    dead.begin(identity(), "lost", DIGEST, NOW_S)
    unsettled = False
    assert sibling.begin(identity(), "lost", DIGEST, NOW_S)[0] is Known.NEW, "it never reached the spool"


def test_a_key_without_room_is_told_of() -> None:
    dropped: list[int] = []
    keys = keys_of(directory(capacity=1), full=lambda: dropped.append(1))
    keys.begin(identity(), "k", DIGEST, NOW_S)
    assert not dropped
    keys.begin(identity(), "too many", DIGEST, NOW_S)
    assert dropped
