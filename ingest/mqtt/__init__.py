"""Telemetry over MQTT: the driver of sessions over TCP, TLS and WebSocket."""
