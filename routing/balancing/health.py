"""What active checks say of one server."""

from __future__ import annotations


class Checks:
    """Changes its mind after so many results in a row, but at once at the first of all.

    A server that joins others is not used before its first check; those that are there at the start are.
    """

    __slots__ = ("_healthy_after", "_row", "_seen", "_unhealthy_after", "healthy")

    def __init__(self, *, healthy_after: int, unhealthy_after: int, healthy: bool) -> None:
        assert healthy_after >= 1
        assert unhealthy_after >= 1
        self._healthy_after = healthy_after
        self._unhealthy_after = unhealthy_after
        self._row = 0
        self._seen = False
        self.healthy = healthy

    def heard(self, *, passed: bool) -> bool:
        """Take the result of a check and return whether that changed `healthy`."""
        self._row = 0 if passed == self.healthy else self._row + 1
        enough = self._healthy_after if passed else self._unhealthy_after
        changed = passed != self.healthy and (not self._seen or self._row >= enough)
        self._seen = True
        if changed:
            self.healthy = passed
            self._row = 0
        return changed
