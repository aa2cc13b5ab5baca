from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.data import recent as under_test
from services.data.recent import RECORD_BYTES, Recent
from services.feed.feed import Record


def record(number: int, tenant: str = "acme", device: str = "pump-1") -> Record:
    return Record(f"id-{number}", tenant, device, "main", 1, "{}", None)


def seqs(recent: Recent, tenant: str, after: int, limit: int = 1000) -> list[int] | None:
    found = recent.after(tenant, after, limit)
    return None if found is None else [each.seq for each in found]


@given(
    st.lists(st.sampled_from("ab"), max_size=60),
    st.integers(1, 30),
    st.integers(0, 60),
    st.integers(1, 10),
)
def test_it_has_the_newest_or_says_that_it_has_not(
    tenants: list[str], kept: int, after: int, limit: int
) -> None:
    recent = Recent(behind=0, bytes_max=kept * (RECORD_BYTES + 2))
    for seq, tenant in enumerate(tenants, 1):
        recent.add([record(seq, tenant)], seq)
    gone = max(0, len(tenants) - kept)
    assert (recent.behind, recent.newest) == (gone, len(tenants))
    for tenant in "ab":
        expected = [seq for seq, each in enumerate(tenants, 1) if each == tenant and seq > after][:limit]
        assert seqs(recent, tenant, after, limit) == (None if after < gone else expected)


def test_memory_of_what_is_gone_is_given_back() -> None:
    recent = Recent(behind=0, bytes_max=10 * (RECORD_BYTES + 2))
    for seq in range(1, 5 * under_test.COMPACT_AT):
        recent.add([record(seq)], seq)
    kept = recent._tenants["acme"]
    assert len(kept.records) <= under_test.COMPACT_AT + 10
    assert seqs(recent, "acme", recent.behind) == list(range(recent.newest - 9, recent.newest + 1))


def test_a_record_is_found_by_its_id_while_it_is_there() -> None:
    recent = Recent(behind=7, bytes_max=2 * (RECORD_BYTES + 2))
    recent.add([record(8), record(9, "other"), record(10)], 8)
    assert recent.seq_of("acme", "id-10") == 10
    assert recent.seq_of("acme", "id-8") is None
    assert recent.seq_of("acme", "id-9") is None, "it is another tenant's"
    assert recent.seq_of("nobody", "id-9") is None


def test_what_is_erased_is_not_shown_and_the_rest_is() -> None:
    recent = Recent(behind=0, bytes_max=100 * RECORD_BYTES)
    recent.add([record(1), record(2, device="pump-2"), record(3), record(4, "other")], 1)
    recent.forget_device("acme", "pump-1")
    assert seqs(recent, "acme", 0) == [2]
    assert seqs(recent, "other", 0) == [4]
    recent.forget_device("acme", "pump-2")
    recent.forget_device("acme", "pump-2")
    recent.add([record(5)], 5)
    assert seqs(recent, "acme", 0) == [5]
    for seq in range(6, 400):
        recent.add([record(seq)], seq)
    assert recent.newest - recent.behind <= 100
