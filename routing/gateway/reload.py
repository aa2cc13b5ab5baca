"""Watches the routes file, and gives the new routes to those who use them; a bad file changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from routing.gateway.table import RoutesRefused
from runtime.settings_file import SettingsError

MadeT = TypeVar("MadeT")


class Watch:
    """Reads a file again when it, or one of the files that it names, changes.

    `make` reads and checks everything, and `use` takes what it made; both may refuse, and then nothing has
    changed. `reloaded` hears None, or what is wrong.
    """

    def __init__(
        self,
        path: Path,
        *,
        make: Callable[[Path], MadeT],
        use: Callable[[MadeT], None],
        also: Callable[[], list[Path]],
        reloaded: Callable[[str | None], None],
    ) -> None:
        self._path = path
        self._make = make
        self._use: Callable[..., None] = use
        self._also = also
        self._reloaded = reloaded
        self.error: str | None = None
        self._seen = self._signature()

    async def run(self, poll_s: float) -> None:
        """Look every `poll_s` seconds, until cancelled."""
        while True:
            await asyncio.sleep(poll_s)
            self.poll()

    def poll(self, *, force: bool = False) -> None:
        """Take the file when it has changed, or when told to."""
        seen = self._signature()
        if seen == self._seen and not force:
            return
        self._seen = seen
        try:
            self._use(self._make(self._path))
        except (SettingsError, RoutesRefused) as error:
            self.error = str(error)
        else:
            self.error = None
            # It may name other files now; those of before are as they were when it was read.
            known = {each[0]: each for each in seen}
            self._seen = tuple(known.get(each[0], each) for each in self._signature())
        self._reloaded(self.error)

    def _signature(self) -> tuple[tuple[str, int, int, int], ...]:
        return tuple(_stamp(path) for path in (self._path, *self._also()))


def _stamp(path: Path) -> tuple[str, int, int, int]:
    try:
        stat = path.stat()
    except OSError:
        return (str(path), 0, 0, 0)
    return (str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino)
