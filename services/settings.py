"""services.toml: what the three services share, and a section for each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from runtime import settings_file
from runtime.settings_file import Section, Wrong, split_bind

Seconds = Annotated[float, msgspec.Meta(ge=0, le=3600)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Days = Annotated[int, msgspec.Meta(ge=1, le=3650)]
Rate = Annotated[float, msgspec.Meta(gt=0, le=100_000)]


class Service(Section, frozen=True):
    """Where things are, and how a process ends."""

    data_dir: str
    """Where each service keeps its own database."""
    registry: str = ""
    """The registry that the ingestion gateway reads; empty is `data_dir`/registry.db."""
    passport_key: str = ""
    """The public key of the API gateway's passports (PEM); empty is `data_dir`/passport.pub."""
    drain_deadline_s: Seconds = 10.0
    notice_s: Seconds = 0.0

    @property
    def registry_path(self) -> Path:
        """Where the registry is."""
        return Path(self.registry) if self.registry else Path(self.data_dir) / "registry.db"

    @property
    def passport_path(self) -> Path:
        """Where the public key of passports is."""
        return Path(self.passport_key) if self.passport_key else Path(self.data_dir) / "passport.pub"


class Device(Section, frozen=True):
    """The device service."""

    bind: str = "127.0.0.1:8101"
    trust_domain: str = "headworks.local"
    """As `node.trust_domain` of the ingestion gateway."""
    issuer: Literal["development", "aws"] = "development"
    ca_dir: str = ""
    """Folder of the development CA, whose revocation list the ingestion gateway reads."""
    aws_ca_arn: str = ""
    aws_region: str = ""
    aws_endpoint: str = ""
    aws_signing_algorithm: str = "SHA256WITHECDSA"
    issuer_deadline_s: Annotated[float, msgspec.Meta(ge=0.1, le=300)] = 15.0
    certificate_days: Days = 365
    certificate_days_max: Days = 3650
    certificates_max: Count = 8
    """Good certificates of one device."""
    devices_max: Count = 1_000_000
    """Devices of one tenant, as are the next three."""
    groups_max: Count = 1000
    claims_max: Count = 1000
    keys_max: Count = 1000
    claims_per_s: Rate = 10.0
    wrong_claims_per_s: Rate = 1.0
    claims_burst: Count = 50
    shadow_bytes_max: Annotated[int, msgspec.Meta(ge=64, le=65_536)] = 8192
    shadow_waiters_max: Count = 10_000
    import_bytes_max: Count = 67_108_864
    imports_waiting_max: Count = 16
    imports_kept_max: Count = 100
    audit_days: Days = 730
    telemetry: str = ""
    """The file of the `local` sink, for exports; empty leaves telemetry out of them."""


class Feed(Section, frozen=True):
    """The stream that the data and the analytics service consume, each with checkpoints of its own."""

    source: Literal["local", "kinesis"] = "local"
    file: str = ""
    """The file of the sink `local`: `local.db` in the `data_dir` of the ingestion gateway."""
    stream: str = ""
    region: str = ""
    endpoint: str = ""
    """Only for a double of Kinesis."""
    poll_s: Annotated[float, msgspec.Meta(ge=0.05, le=60)] = 0.25
    """How often to look for records; a shard of Kinesis at most every 0.45 s."""
    records_max: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 1000
    """At most so many records of the stream at once, of Kinesis before they are de-aggregated."""
    duplicates_window: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] = 200_000
    """The ids of so many records are known, to drop what comes twice."""
    deadline_s: Annotated[float, msgspec.Meta(ge=0.1, le=60)] = 10.0
    """Of a call to Kinesis."""


class Data(Section, frozen=True):
    """The data service."""

    bind: str = "127.0.0.1:8102"
    retention_days: Days = 30
    bytes_max: Annotated[int, msgspec.Meta(ge=16_777_216)] = 17_179_869_184
    """Of the warehouse on disk: beyond it the oldest records go."""
    memory_mib: Annotated[int, msgspec.Meta(ge=64)] = 512
    """What DuckDB may use; so are the threads."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=256)] = 2
    reads_max: Annotated[int, msgspec.Meta(ge=1, le=256)] = 4
    """Reads of the warehouse at once; more wait for their turn, up to the next."""
    reads_waiting_max: Count = 64
    read_deadline_s: Annotated[float, msgspec.Meta(ge=0.1, le=300)] = 10.0
    stream_deadline_s: Annotated[float, msgspec.Meta(ge=1, le=3600)] = 300.0
    """For a caller to read a stream to its end."""
    tails_max: Count = 1000
    recent_bytes_max: Annotated[int, msgspec.Meta(ge=65_536)] = 67_108_864
    """Of the newest records in memory, for live streams."""


class WindowSize(Section, frozen=True):
    """Roll-ups of one size: `30s`, `1m`, `1h`, `1d`, and for how long they are kept."""

    size: Annotated[str, msgspec.Meta(pattern="^[1-9][0-9]{0,4}[smhd]$")]
    keep_days: Days


class Analytics(Section, frozen=True):
    """The analytics service."""

    bind: str = "127.0.0.1:8103"
    windows: Annotated[tuple[WindowSize, ...], msgspec.Meta(min_length=1, max_length=8)] = (
        WindowSize(size="1m", keep_days=2),
        WindowSize(size="5m", keep_days=14),
        WindowSize(size="1h", keep_days=90),
        WindowSize(size="1d", keep_days=730),
    )
    """The finest first; each is a multiple of the one before it."""
    lateness_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 3600.0
    """So long a window is corrected after the device has sent something newer."""
    future_s: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 300.0
    """So far ahead of the gateway a device's clock may be; at most `lateness_s`."""
    devices_max: Count = 100_000
    """Devices of one tenant."""
    series_max: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 64
    """Series (a metric of a stream) of one device."""
    metrics_max: Count = 1000
    """Metrics of one tenant, each of a stream."""
    anomaly_sigma: Annotated[float, msgspec.Meta(ge=1, le=1000)] = 4.0
    """From so many deviations a number is an anomaly."""
    anomaly_memory: Annotated[int, msgspec.Meta(ge=10, le=100_000)] = 200
    """The baseline of a series is of about so many numbers."""
    anomaly_warm_up: Annotated[int, msgspec.Meta(ge=2, le=100_000)] = 30
    """The first numbers of a series, of which none is scored."""


class Log(Section, frozen=True):
    """The log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"


class Settings(Section, frozen=True):
    """The settings of the services."""

    service: Service
    device: Device = Device()
    feed: Feed = Feed()
    data: Data = Data()
    analytics: Analytics = Analytics()
    log: Log = Log()


def load(path: Path, overrides: Sequence[str] = ()) -> Settings:
    """Read and check services.toml; raises `SettingsError`."""
    return settings_file.load(path, Settings, check=_check, overrides=overrides)


def _check(settings: Settings, wrong: Wrong) -> None:
    for name in ("device", "data", "analytics"):
        try:
            split_bind(getattr(settings, name).bind)
        except ValueError as error:
            raise wrong(f"{name}.bind", str(error)) from error
    device = settings.device
    if device.issuer == "aws" and not (device.aws_ca_arn and device.aws_region):
        raise wrong("device.issuer", "aws needs device.aws_ca_arn and device.aws_region")
    feed = settings.feed
    if feed.source == "kinesis" and not (feed.stream and feed.region):
        raise wrong("feed.source", "kinesis needs feed.stream and feed.region")
