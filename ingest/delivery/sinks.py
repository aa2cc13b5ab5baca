"""Makes the sink that the settings name."""

from __future__ import annotations

import random
from pathlib import Path

from ingest.delivery.kinesis.service import KinesisService
from ingest.delivery.kinesis.sink import KinesisLimits, KinesisSink
from ingest.delivery.local import LocalSink
from ingest.delivery.null import NullSink
from ingest.delivery.sink import Settled, Sink
from ingest.events import Events
from ingest.settings import Sink as SinkSettings


def make_sink(settings: SinkSettings, *, data_dir: Path, settled: Settled, events: Events) -> Sink:
    """Return the sink, ready to `run`."""
    match settings.kind:
        case "null":
            return NullSink(settled=settled)
        case "local":
            return LocalSink(
                data_dir / "local.db",
                settled=settled,
                bytes_max=settings.local_bytes_max,
                pending_bytes_max=settings.pending_bytes_max,
                trouble=events.sink_trouble,
                expired=events.records_expired,
            )
        case "kinesis":
            return KinesisSink(
                KinesisService(
                    stream=settings.stream,
                    region=settings.region,
                    endpoint=settings.endpoint or None,
                    deadline_s=settings.call_deadline_s,
                    connections_max=settings.concurrency_max,
                ),
                settled=settled,
                events=events,
                limits=KinesisLimits(
                    pending_bytes_max=settings.pending_bytes_max,
                    record_bytes_max=settings.record_bytes_max,
                    concurrency_max=settings.concurrency_max,
                    call_deadline_s=settings.call_deadline_s,
                    shard_bytes_per_s=settings.shard_bytes_per_s,
                    shard_records_per_s=settings.shard_records_per_s,
                    linger_s=settings.linger_s,
                ),
                random=random.Random().random,  # noqa: S311  # jitter, not cryptography
            )
