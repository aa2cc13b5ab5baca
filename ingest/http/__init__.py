"""Telemetry over HTTP and WebSocket."""
