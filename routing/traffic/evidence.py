"""Evidence that something happens more often than it may, which can be looked at as often as one likes.

Of `of` events, `hits` are bad, and each is so with a chance of at most `chance` if all is well. For an odds
ratio w > 1, the product over all looks of

    w ** hits / (1 + chance * (w - 1)) ** of

is then a supermartingale that begins with 1, and so is its mean over several w (Robbins 1970). It ever gets
to 1 / alpha with a probability of at most alpha (Ville 1939): who stops then is wrong that often, however
often they looked.

Two questions are asked in this form:

- Is a rate above a limit? `of` are requests, `hits` failures, `chance` the limit.
- Does one of two fail more often than the other? `of` are the failures of both since the last look, `hits`
  those of the one, `chance` its part of the requests. Given these sums, and equal rates, `hits` are drawn
  without replacement, whose exponential moments are no more than with it (Hoeffding 1963, theorem 4).
  What the rate is, that it changes for both, and how requests are divided does not matter. It is the idea
  of Lindon and Malek, "Anytime-Valid Inference for Multinomial Count Data" (2022), for lots of requests.

What is assumed is that requests fail independently of one another.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

ODDS: Final = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 200.0, 1000.0)
"""The odds ratios that are looked for, each as likely as the others."""


class Evidence(msgspec.Struct, frozen=True):
    """The logarithm of the product of each odds ratio."""

    logs: tuple[float, ...] = (0.0,) * len(ODDS)

    def after(self, hits: int, of: int, chance: float) -> Evidence:
        """Return the evidence after another look."""
        assert 0 <= hits <= of
        assert 0 <= chance <= 1
        return Evidence(
            tuple(
                log + hits * math.log(odds) - of * math.log1p(chance * (odds - 1))
                for log, odds in zip(self.logs, ODDS, strict=True)
            )
        )

    def proves(self, alpha: float) -> bool:
        """Say whether something is wrong, with a probability of `alpha` to be mistaken over all looks."""
        return self.log >= -math.log(alpha)

    @property
    def log(self) -> float:
        """The logarithm of the mean of the products."""
        most = max(self.logs)
        return most + math.log(math.fsum(math.exp(log - most) for log in self.logs) / len(self.logs))
