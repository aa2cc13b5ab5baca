"""The data service: telemetry, read back by device, stream, metric and time."""
