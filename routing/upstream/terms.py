"""Makes what every kind of upstream has of its terms in the routes file."""

from __future__ import annotations

from routing.gateway.routes_file import Breaking, Upstream
from routing.resilience.breaker import Breaker
from routing.resilience.budget import Budget


def breaker_of(terms: Breaking) -> Breaker:
    """Return the breaker of an upstream."""
    return Breaker(
        failures_max=terms.failures_max,
        open_s=min(terms.open_s, terms.open_s_max),
        open_s_max=terms.open_s_max,
    )


def budget_of(terms: Upstream, now_s: float) -> Budget:
    """Return the retry budget of an upstream."""
    budget = terms.retry_budget
    return Budget(share=budget.share, min_per_s=budget.min_per_s, window_s=budget.window_s, now_s=now_s)
