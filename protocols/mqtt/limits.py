"""The bounds of one MQTT session."""

from __future__ import annotations

import msgspec


class SessionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one session may hold and ask for. Intervals in seconds."""

    packet_bytes_max: int
    connect_bytes_max: int
    receive_maximum: int
    topic_alias_maximum: int
    topic_levels_max: int
    topic_bytes_max: int
    client_id_bytes_max: int
    user_properties_max: int
    keep_alive_s_max: int
    session_expiry_s_max: int
