"""May this producer publish to this topic? Judged once a connection and topic, then looked up."""

from __future__ import annotations

import itertools
from typing import Any

from bench import corpus
from bench.rig import Rig
from ingest.pipeline import Producer
from routing.tenancy.identity import Credential, Identity, Kind


def producer_of(name: str, kind: Kind) -> Producer:
    identity = Identity(tenant=corpus.TENANT, name=name, kind=kind, credential=Credential.CERTIFICATE)
    return Producer(identity, can_refuse=True)


def test_known_topic(benchmark: Any, rig: Rig) -> None:
    producer = producer_of(corpus.device(0), Kind.DEVICE)
    assert benchmark(rig.pipeline.may_publish, producer, corpus.topic())


def test_first_use_of_a_topic(benchmark: Any, rig: Rig) -> None:
    producer = producer_of(corpus.device(0), Kind.DEVICE)

    def first_use() -> bool:
        producer.forget_routes()
        return rig.pipeline.may_publish(producer, corpus.topic())

    assert benchmark(first_use)


def test_first_use_of_a_device(benchmark: Any, rig: Rig) -> None:
    producer = producer_of("gateway", Kind.GATEWAY)
    topics = map(corpus.topic, itertools.count())

    def first_use() -> bool:
        return rig.pipeline.may_publish(producer, next(topics))

    assert benchmark(first_use)


def test_topic_of_another_device_is_refused(benchmark: Any, rig: Rig) -> None:
    producer = producer_of(corpus.device(1), Kind.DEVICE)
    assert not benchmark(rig.pipeline.may_publish, producer, corpus.topic(0))
