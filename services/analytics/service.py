"""What the operations of the analytics service work on."""

from __future__ import annotations

from services.analytics.consumer import Consumer
from services.analytics.rules import Rules
from services.analytics.store.reader import Reader


class AnalyticsService:
    """The parts of the service, open. `consumer.run` must be running."""

    def __init__(self, *, reader: Reader, consumer: Consumer, rules: Rules) -> None:
        self.reader = reader
        self.consumer = consumer
        self.rules = rules
