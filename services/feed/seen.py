"""The ids of the records that a consumer has had lately, so that what comes again is dropped.

Limits: the newest `ids_max` ids, about 150 bytes each. What comes again comes soon: a producer tries again
within seconds, and a consumer begins at its checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.feed.feed import Record


class Seen:
    """A window over the stream, of ids; filled at the start from what the consumer has stored."""

    def __init__(self, ids: Iterable[str] = (), *, ids_max: int) -> None:
        self._ids_max = ids_max
        self._ids: dict[str, None] = {}
        self.add(ids)

    def __contains__(self, identity: str) -> bool:
        return identity in self._ids

    def fresh(self, records: Sequence[Record]) -> list[Record]:
        """Return the records that have not been here, each once; remembers nothing."""
        found: dict[str, Record] = {}
        for record in records:
            if record.id not in self._ids:
                found.setdefault(record.id, record)
        return list(found.values())

    def add(self, ids: Iterable[str]) -> None:
        """Remember ids whose records have taken effect, and forget the oldest."""
        ids_max, known = self._ids_max, self._ids
        for identity in ids:
            known[identity] = None
        while len(known) > ids_max:
            del known[next(iter(known))]
