"""For Locust: `locust -f loadtests/locustfile.py` against `make run`, or a campaign; see docs/guides/load.md.

`LOADTESTS_CAMPAIGN` names a campaign: then its groups are the user classes, and its stages the load shape.
Without it there is one class a protocol, as many users as you like, and each user is a shard of devices.
"""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Any, Final

import locust.stats
from locust import User, events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.rpc import Message
from locust.runners import WorkerRunner

from loadtests import plan as plans
from loadtests.plan import Group, Plan, Promise
from loadtests.target import Target
from loadtests.users.classes import ApiCaller, class_for
from loadtests.users.fleet import Fleet
from loadtests.users.shape import CampaignShape, Conductor, handed_over, report

CAMPAIGN: Final = os.environ.get("LOADTESTS_CAMPAIGN", "")
FOLDER: Final = os.environ.get("LOADTESTS_FOLDER", "")
SHARD: Final = int(os.environ.get("LOADTESTS_SHARD", "2000"))
SEED: Final = int(os.environ.get("LOADTESTS_SEED", "1"))
FOR_EVER_S: Final = 1e9
PLOT_EVERY_S: Final = 1


def _free_plan() -> Plan:
    """Return what is run without a campaign: a group a protocol, for as long as Locust says."""
    size = 10 * int(os.environ.get("LOADTESTS_DEVICES_A_USER", "100"))  # a shard is a tenth of its group
    groups = [
        Group(name="mqtt", speaks="mqtt", devices=size),
        Group(name="http", speaks="http", devices=size),
        Group(name="websocket", speaks="websocket", devices=size),
        Group(name="api", speaks="api", devices=1),
    ]
    return Plan(what="As Locust says.", load_s=FOR_EVER_S, promise=Promise(p99_ms=FOR_EVER_S), groups=groups)


def _campaign() -> Plan:
    """Return the campaign, as large and as long as is asked for."""
    devices, load_s, period_s = (
        os.environ.get(f"LOADTESTS_{name}") for name in ("DEVICES", "DURATION", "PERIOD")
    )
    return plans.load(CAMPAIGN).scaled(
        devices=int(devices) if devices else None,
        load_s=float(load_s) if load_s else None,
        period_s=float(period_s) if period_s else None,
    )


NAMES: Final = {"mqtt": "MqttShard", "http": "HttpDevice", "websocket": "WebSocketDevice", "api": "ApiCaller"}
PLAN: Final = _campaign() if CAMPAIGN else _free_plan()
FLEET: Final = Fleet(PLAN, shard_max=SHARD, seed=SEED)
CLASSES: Final[dict[str, type[User]]] = {
    name: class_for(group, FLEET, SHARD, name)
    for group in PLAN.groups
    for name in [group.name if CAMPAIGN else NAMES[group.speaks]]
}
globals().update(CLASSES)  # where Locust looks for them

if CAMPAIGN:

    class Shape(CampaignShape):
        """The campaign's."""

        plan = PLAN
        users = int(sum(each.weight for each in CLASSES.values()))


def add_options(parser: LocustArgumentParser) -> None:
    """Say where the gateway is; the defaults are those of `make run`."""
    defaults = Target()
    for field in Target.__struct_fields__:
        parser.add_argument(
            f"--to-{field}",
            default=getattr(defaults, field),
            env_var=f"LOADTESTS_TO_{field.upper()}",
            help="folder of the development CA" if field == "pki" else f"host:port of {field}",
        )


def prepare(environment: Environment, **_: Any) -> None:
    """Connect the fleet of this process with the master's, if there is one."""
    locust.stats.HISTORY_STATS_INTERVAL_SEC = PLOT_EVERY_S
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    runner = environment.runner
    assert runner is not None
    conductor = Conductor(environment, FLEET, Path(FOLDER) if FOLDER else None)

    def begin(**_: Any) -> None:
        options = environment.parsed_options
        assert options is not None
        ApiCaller.host = f"http://{options.to_admin}"
        FLEET.begin(time.monotonic())
        if not isinstance(runner, WorkerRunner):
            conductor.begin()

    environment.events.test_start.add_listener(begin)
    if isinstance(runner, WorkerRunner):

        def hand_over(msg: Message, **_: Any) -> None:
            del msg
            for rows, last in handed_over(FLEET):
                runner.send_message("rows", {"rows": rows, "last": last})

        def tell(data: dict[str, Any], **_: Any) -> None:
            data["fleet"] = report(FLEET)

        runner.register_message("hand_over", hand_over)
        environment.events.report_to_master.add_listener(tell)
        return

    def take(msg: Message, **_: Any) -> None:
        conductor.take(msg.node_id, msg.data["rows"], last=msg.data["last"])

    def hear(client_id: str, data: dict[str, Any], **_: Any) -> None:
        if "fleet" in data:
            conductor.hear(client_id, data["fleet"])

    runner.register_message("rows", take)
    environment.events.worker_report.add_listener(hear)
    if environment.shape_class is not None:
        CampaignShape.conclude = conductor.conclude


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(prepare)
