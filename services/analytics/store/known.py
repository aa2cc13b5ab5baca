"""Devices and series as they are stored: what a fold begins from, and leaves behind."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from services.analytics.baseline import Baseline
from services.analytics.series import Anomaly, Device, Key, Series

COLUMNS: Final = (
    "number, tenant, device, stream, metric, last_ms, last, readings, mean, variance, sigma, anomalies, "
    "anomaly_ms, anomaly_value, anomaly_sigma"
)
_DROPPED: Final = msgspec.json.Decoder(dict[str, int])


class StoredSeries:
    """What is in the tables `devices` and `series`, by point queries. Raises `sqlite3.Error`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def device(self, tenant: str, name: str) -> Device | None:
        """Return a device, or None."""
        row = self._connection.execute(
            "SELECT high_ms, dropped FROM devices WHERE tenant = ? AND name = ?", (tenant, name)
        ).fetchone()
        if row is None:
            return None
        return Device(tenant=tenant, name=name, high_ms=row[0], dropped=_DROPPED.decode(row[1]))

    def series(self, key: Key) -> Series | None:
        """Return a series, or None."""
        row = self._connection.execute(
            f"SELECT {COLUMNS} FROM series WHERE tenant = ? AND device = ? AND metric = ? AND stream = ?",
            (key.tenant, key.device, key.metric, key.stream),
        ).fetchone()
        return None if row is None else series_of(row)

    def device_count(self, tenant: str) -> int:
        """Return how many devices a tenant has."""
        return self._count("SELECT count(*) FROM devices WHERE tenant = ?", tenant)

    def series_count(self, tenant: str, device: str) -> int:
        """Return how many series a device has, or with `EVERY_DEVICE` its tenant."""
        return self._count("SELECT count(*) FROM series WHERE tenant = ? AND device = ?", tenant, device)

    def _count(self, sql: str, *values: str) -> int:
        return int(self._connection.execute(sql, values).fetchone()[0])

    def put_devices(self, devices: Iterable[Device]) -> None:
        """Keep devices."""
        self._connection.executemany(
            "INSERT OR REPLACE INTO devices VALUES (?, ?, ?, ?)",
            [
                (each.tenant, each.name, each.high_ms, msgspec.json.encode(each.dropped).decode())
                for each in devices
            ],
        )

    def put_series(self, changed: Iterable[Series]) -> None:
        """Keep series; one that is new gets its number."""
        for series in changed:
            number = self._connection.execute(
                f"INSERT OR REPLACE INTO series ({COLUMNS}) VALUES ({', '.join('?' * 15)})", _row(series)
            ).lastrowid
            assert number is not None
            series.number = number


def series_of(row: Any) -> Series:
    """Return a series of its columns."""
    number, tenant, device, stream, metric, last_ms, last, readings, mean, variance, sigma, anomalies = row[
        :12
    ]
    return Series(
        key=Key(tenant, device, stream, metric),
        number=number,
        last_ms=last_ms,
        last=last,
        baseline=Baseline(readings, mean, variance),
        sigma=sigma,
        anomalies=anomalies,
        anomaly=None if row[12] is None else Anomaly(*row[12:15]),
    )


def _row(series: Series) -> tuple[object, ...]:
    key, baseline, anomaly = series.key, series.baseline, series.anomaly
    return (
        series.number or None,
        key.tenant,
        key.device,
        key.stream,
        key.metric,
        series.last_ms,
        series.last,
        baseline.readings,
        baseline.mean,
        baseline.variance,
        series.sigma,
        series.anomalies,
        *((None, None, None) if anomaly is None else (anomaly.at_ms, anomaly.value, anomaly.sigma)),
    )
