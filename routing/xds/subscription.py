"""One type on one stream: what the proxy wants, what it holds, and what it is sent next.

Source: https://www.envoyproxy.io/docs/envoy/latest/api-docs/xds_protocol, "ACK and NACK", "How the client
specifies what resources to return", "Incremental xDS".

- One response waits for its answer; the next is made when that is there.
- What a proxy refused is not sent again before something else is to be sent.
- What it holds is what it acknowledged: a response that it refused changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from routing.xds.snapshot import WHOLE, Resource, Resources, version_of

WILDCARD: Final = "*"
ERROR_CHARACTERS_MAX: Final = 2000


class TooManyNames(Exception):
    """A proxy asks for more names than one is given."""


class Response(msgspec.Struct, frozen=True):
    """What is sent: `removed` only where the variant is delta."""

    kind: str
    version: str
    nonce: str
    resources: tuple[Resource, ...]
    removed: tuple[str, ...] = ()


class Status(msgspec.Struct, frozen=True):
    """What a proxy has of one type: the version that it acknowledged, and why it refused a later one."""

    kind: str
    accepted: str
    sent: str
    error: str


class _Sent(msgspec.Struct, frozen=True):
    response: Response
    target: Mapping[str, str]
    """Version by name of all that the proxy should hold afterwards."""


class Subscription:
    """What both variants share: nonces, ACK, NACK, and what a proxy holds."""

    def __init__(self, kind: str, *, names_max: int) -> None:
        self.kind = kind
        self.names: set[str] = set()
        self.wildcard = False
        self.held: dict[str, Resource] = {}
        """What the proxy acknowledged on this stream."""
        self._names_max = names_max
        self._count = 0
        self._waiting: _Sent | None = None
        self._refused: Mapping[str, str] | None = None
        self._again: set[str] = set()
        self._answered = False
        self._status = Status(kind, "", "", "")

    @property
    def waiting(self) -> bool:
        """Whether a response was not yet answered."""
        return self._waiting is not None

    @property
    def status(self) -> Status:
        """Return what the proxy has of this type."""
        return self._status

    def wants(self, name: str) -> bool:
        """Return whether the proxy asked for a resource."""
        return self.wildcard or name in self.names

    def send_again(self, names: Iterable[str]) -> None:
        """Take it that the proxy wants resources anew, as a cluster that changed does its endpoints."""
        self._again |= {name for name in names if name in self.held}

    def refuses(self, resources: Resources, *, keep: bool) -> bool:
        """Return whether just this was refused."""
        return self._refused is not None and self._refused == _versions(self._target(resources, keep=keep))

    def next(self, resources: Resources, *, keep: bool) -> Response | None:
        """Return what is to be sent, or None; with `keep`, what the proxy holds is not yet taken from it."""
        if self._waiting is not None:
            return None
        target = self._target(resources, keep=keep)
        versions = _versions(target)
        if versions == self._refused:
            return None
        changed = self._changed(target)
        removed = self._removed(target)
        if not changed and not removed and not self._owes_an_answer():
            abandoned = self._refused is not None and not keep  # nobody wants any more what was refused
            kept = target and not self._status.sent  # all of it from another stream
            if abandoned or kept:
                self._refused = None
                self._status = Status(self.kind, version_of(target), version_of(target), "")
            return None
        self._count += 1
        version = version_of(target)
        sent = target.values() if self._sends_whole() else changed
        response = Response(self.kind, version, str(self._count), tuple(sent), self._told(removed))
        self._waiting = _Sent(response, versions)
        self._status = msgspec.structs.replace(self._status, sent=version)
        self._answered = True
        return response

    def _answer(self, nonce: str, error: str | None) -> bool:
        """Take an ACK or, with an error, a NACK; return False where the nonce is of an older response."""
        if not nonce:
            return True
        if nonce != str(self._count):
            return False
        if self._waiting is None:  # what it wants changed, and nothing was sent since
            return True
        sent, self._waiting = self._waiting, None
        if error is not None:
            self._refused = sent.target
            self._status = msgspec.structs.replace(
                self._status, error=error[:ERROR_CHARACTERS_MAX] or "refused"
            )
            return True
        self._refused = None
        self._accept(sent)
        self._status = Status(self.kind, sent.response.version, sent.response.version, "")
        return True

    def _accept(self, sent: _Sent) -> None:
        for each in sent.response.resources:
            if self.wants(each.name):
                self.held[each.name] = each
            self._again.discard(each.name)
        for name in set(self.held) - set(sent.target):
            del self.held[name]

    def _target(self, resources: Resources, *, keep: bool) -> Resources:
        """Return what the proxy should hold."""
        wanted = (
            resources if self.wildcard else {name: resources[name] for name in self.names & set(resources)}
        )
        if not keep:
            return wanted
        return {**{name: each for name, each in self.held.items() if self.wants(name)}, **wanted}

    def _changed(self, target: Resources) -> list[Resource]:
        return [
            each
            for name, each in sorted(target.items())
            if each.body  # of what it kept from another stream only the version is known
            and (name in self._again or name not in self.held or self.held[name].version != each.version)
        ]

    def _removed(self, target: Resources) -> set[str]:
        return {name for name in self.held if name not in target}

    def _owes_an_answer(self) -> bool:
        """Return whether the proxy waits to hear that there is nothing."""
        return self.wildcard and not self._answered

    def _sends_whole(self) -> bool:
        raise NotImplementedError

    def _told(self, removed: set[str]) -> tuple[str, ...]:
        raise NotImplementedError

    def _limit(self) -> None:
        if len(self.names) > self._names_max:
            raise TooManyNames(f"more than {self._names_max} names of {self.kind}")


class StateOfTheWorld(Subscription):
    """The variant whose request names all that is wanted, and whose responses say no name that is gone."""

    def __init__(self, kind: str, *, names_max: int) -> None:
        super().__init__(kind, names_max=names_max)
        self._named = False

    def take(self, names: Iterable[str], nonce: str, error: str | None) -> None:
        """Take a DiscoveryRequest; one that answers an older response is of no account."""
        if not self._answer(nonce, error):
            return
        asked = set(names)
        # An empty list is a wildcard only to a client that never named a resource.
        self._named = self._named or bool(asked)
        self.wildcard = WILDCARD in asked or (self.kind in WHOLE and not self._named)
        self.names = asked - {WILDCARD}
        self._limit()
        self.held = {name: each for name, each in self.held.items() if self.wants(name)}

    def _sends_whole(self) -> bool:
        return self.kind in WHOLE

    def _removed(self, target: Resources) -> set[str]:
        gone = super()._removed(target)
        if self.kind in WHOLE:
            return gone
        for name in gone:  # nothing says so: the cluster or listener that names it goes
            del self.held[name]
        return set()

    def _told(self, removed: set[str]) -> tuple[str, ...]:
        del removed
        return ()


class Delta(Subscription):
    """The incremental variant: requests and responses say what is different."""

    def __init__(self, kind: str, *, names_max: int) -> None:
        super().__init__(kind, names_max=names_max)
        self._first = True
        self._missing: set[str] = set()
        """Names that the proxy has not heard yet are not there."""

    def take(
        self,
        subscribe: Iterable[str],
        unsubscribe: Iterable[str],
        held: Mapping[str, str],
        nonce: str,
        error: str | None,
    ) -> None:
        """Take a DeltaDiscoveryRequest; `held` is what it kept from another stream, by version."""
        self._answer(nonce, error)
        asked, left = set(subscribe), set(unsubscribe)
        if self._first:
            self._first = False
            self.wildcard = self.kind in WHOLE and not asked
            if len(held) > self._names_max:
                raise TooManyNames(f"more than {self._names_max} versions of {self.kind}")
            self.held = {name: Resource(name, version, b"") for name, version in held.items()}
        else:
            self._again |= asked & set(self.held)  # "even if it is already subscribed, it is sent again"
        if WILDCARD in asked:
            self.wildcard = True
        if WILDCARD in left:
            self.wildcard = False
        self.names = (self.names | asked) - left - {WILDCARD}
        self._missing = (self._missing | asked) - left - {WILDCARD}
        self._limit()
        for name in [name for name in self.held if not self.wants(name)]:
            del self.held[name]
        self._again &= set(self.held)

    def _accept(self, sent: _Sent) -> None:
        super()._accept(sent)
        self._missing -= {*sent.response.removed, *sent.target}

    def _removed(self, target: Resources) -> set[str]:
        return super()._removed(target) | (self._missing - set(target))

    def _sends_whole(self) -> bool:
        return False

    def _told(self, removed: set[str]) -> tuple[str, ...]:
        return tuple(sorted(removed))


def _versions(resources: Resources) -> dict[str, str]:
    return {name: each.version for name, each in resources.items()}
