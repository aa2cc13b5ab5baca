"""The steps of a shift as weights of a route's targets.

Weights are whole numbers from 0 to 100, as App Mesh has them. What the canary gains is taken from the
targets that it replaces, in their proportions; other targets keep their share of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Final

import msgspec

WEIGHT_MAX: Final = 100
STEPS_MAX: Final = 20
BEFORE: Final = -1
"""The step before the first: the weights that were there."""


class PlanError(Exception):
    """There is no such shift; the text says why."""


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """Whom a shift leads to and away from, by their places among the targets, and how far each step goes.

    `steps` are percent of what all of them have together.
    """

    to: int
    away: tuple[int, ...]
    steps: tuple[int, ...]
    before: tuple[int, ...]

    def weights(self, step: int) -> tuple[int, ...]:
        """Return the weights of a step, in the order of the targets."""
        if step == BEFORE:
            return self.before
        pool = (self.to, *self.away)
        together = sum(self.before[place] for place in pool)
        largest = max(together, *self.before)
        scale = Fraction(WEIGHT_MAX // largest) if largest <= WEIGHT_MAX else Fraction(WEIGHT_MAX, largest)
        whole = max(round(together * scale), 1)
        canary = _between(whole * Fraction(self.steps[step], 100), whole, self.steps[step])
        made = [_kept(weight * scale) for weight in self.before]
        made[self.to] = canary
        for place, weight in zip(self.away, self._shared(whole - canary), strict=True):
            made[place] = weight
        return tuple(made)

    def again(self, step: int) -> int:
        """Return where to begin anew at a step: before it, if it leaves nobody to compare with."""
        first = max(step, 0)
        alone = not any(self.weights(first)[place] for place in self.away)
        return first - 1 if alone and first else first

    def share(self, step: int) -> float:
        """Return which part of all that the route matches goes to the canary."""
        weights = self.weights(step)
        return weights[self.to] / sum(weights)

    def _shared(self, whole: int) -> list[int]:
        """Return `whole` divided as it was between those that are led away from: largest remainders first."""
        weights = [self.before[place] for place in self.away]
        exact = [Fraction(whole * weight, sum(weights)) for weight in weights]
        made = [int(each) for each in exact]
        by_rest = sorted(range(len(made)), key=lambda place: made[place] - exact[place])
        for place in by_rest[: whole - sum(made)]:
            made[place] += 1
        return made


def planned(
    targets: Sequence[str], weights: Sequence[int], *, to: str, away: Sequence[str], steps: Sequence[int]
) -> Plan:
    """Return a plan; without `away`, all other targets that get anything are led away from. Raises PlanError.

    Steps that the canary is beyond already are left out.
    """
    _check_steps(steps)
    known = ", ".join(targets)
    for name in (to, *away):
        if targets.count(name) != 1:
            found = "is not a target" if name not in targets else "is there on several ports"
            raise PlanError(
                f"{name} {found} of the route, which leads to {known}: give it weight 0 there first"
            )
    if to in away:
        raise PlanError(f"{to} cannot be led to and away from")
    place = targets.index(to)
    sources = [targets.index(name) for name in away] or [
        other for other, weight in enumerate(weights) if other != place and weight
    ]
    if not any(weights[source] for source in sources):
        raise PlanError(f"nothing is left to lead to {to}: it has {weights[place]} of {sum(weights)}")
    together = weights[place] + sum(weights[source] for source in sources)
    left = [step for step in steps if step * together > weights[place] * 100]
    if not left:
        raise PlanError(f"{to} is beyond the last step: it has {weights[place]} of {together}")
    return Plan(place, tuple(sources), tuple(left), tuple(weights))


def _check_steps(steps: Sequence[int]) -> None:
    if not 1 <= len(steps) <= STEPS_MAX:
        raise PlanError(f"there are 1 to {STEPS_MAX} steps, not {len(steps)}")
    if any(not 1 <= step <= 100 for step in steps) or list(steps) != sorted(set(steps)):
        raise PlanError("steps are percent from 1 to 100, each more than the one before")


def _between(exact: Fraction, whole: int, percent: int) -> int:
    """Return a whole weight that is neither nothing nor, before 100 percent, everything."""
    most = whole if percent == 100 else max(whole - 1, 1)
    return min(max(round(exact), 1), most)


def _kept(exact: Fraction) -> int:
    return max(round(exact), 1) if exact else 0
