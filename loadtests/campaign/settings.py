"""The settings of a node that is started for a campaign."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from loadtests.node import Node, free_port
from loadtests.plan import Plan
from loadtests.target import Target

ROOM: Final = 1000
"""Devices beyond those of the campaign that tables have room for."""
SETTINGS: Final = """\
[node]
name = "campaign"
data_dir = "{folder}/data"
workers = {workers}
drain_deadline_s = 30
[[listeners]]
protocol = "mqtt"
bind = "{mqtt}"
tls = "off"
auth = ["topic"]
[[listeners]]
protocol = "http"
bind = "{http}"
tls = "off"
auth = ["topic"]
[[listeners]]
protocol = "mqtt"
bind = "{mqtts}"
auth = ["certificate"]
[[listeners]]
protocol = "http"
bind = "{https}"
auth = ["certificate"]
[tls]
certificate = "{folder}/pki/server.crt"
key = "{folder}/pki/server.key"
client_ca = "{folder}/pki/ca.crt"
crl = "{folder}/pki/crl.pem"
[sink]
kind = "local"
[memory]
devices_max = {devices}
sessions_max = {devices}
[admin]
bind = "{admin}"
"""


def target_for(node: Node) -> Target:
    """Choose ports for a node."""
    mqtt, mqtts, http, https = (f"127.0.0.1:{free_port()}" for _ in range(4))
    return Target(mqtt=mqtt, mqtts=mqtts, http=http, https=https, admin=node.admin, pki=str(node.pki))


def settings_for(plan: Plan, node: Node, target: Target) -> str:
    """Return the settings as TOML."""
    text = SETTINGS.format(
        folder=node.folder,
        workers=plan.node.workers,
        devices=plan.devices + ROOM,
        mqtt=target.mqtt,
        mqtts=target.mqtts,
        http=target.http,
        https=target.https,
        admin=target.admin,
    )
    return text + plan.node.settings


def local_db(node: Node) -> Path:
    """Return the file of the sink."""
    return node.folder / "data" / "local.db"
