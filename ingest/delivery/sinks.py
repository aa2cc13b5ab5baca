"""Makes the sink that the settings name."""

from __future__ import annotations

import importlib
import random
from pathlib import Path
from typing import Final

from ingest.delivery.kinesis.sink import KinesisSink
from ingest.delivery.local import LocalSink
from ingest.delivery.null import NullSink
from ingest.delivery.sink import Settled, Sink
from ingest.events import Events
from ingest.limits import KinesisLimits
from ingest.settings import Sink as SinkSettings

SERVICE: Final = "ingest.delivery.kinesis.service"
"""What calls Kinesis, which takes a second and 40 MB to load."""
MAP_AGE_MAX_S: Final = 60.0
OLD_MAP_RETRY_S: Final = 10.0
MAP_RETRY_S: Final = 1.0


def load(kind: str) -> None:
    """Load what a sink of this kind needs; before a fork, it is shared."""
    if kind == "kinesis":
        importlib.import_module(SERVICE)


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
                importlib.import_module(SERVICE).KinesisService(
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
                    map_age_max_s=MAP_AGE_MAX_S,
                    old_map_retry_s=OLD_MAP_RETRY_S,
                    map_retry_s=MAP_RETRY_S,
                ),
                random=random.Random().random,  # noqa: S311  # jitter, not cryptography
            )
