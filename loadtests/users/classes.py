"""The classes of users that Locust spawns: a shard of devices, or a caller of the API."""

from __future__ import annotations

from typing import ClassVar

from locust import FastHttpUser, User, task
from locust.user.task import LOCUST_STATE_RUNNING

from loadtests.plan import Group
from loadtests.target import Target
from loadtests.users.fleet import Fleet

API_DEADLINE_S = 10.0


class ShardUser(User):
    """A shard of devices of one group, for as long as Locust lets it run."""

    abstract = True
    group: ClassVar[Group]
    fleet: ClassVar[Fleet]

    @task
    def drive(self) -> None:
        """Drive the devices until the user is to stop."""
        options = self.environment.parsed_options
        worker = getattr(self.environment.runner, "worker_index", 0)
        shard = self.fleet.take(self.group, self.environment, worker, target_of(options))
        try:
            shard.run(lambda: self._state == LOCUST_STATE_RUNNING)
        finally:
            self.fleet.give_back(shard)


class MqttShard(ShardUser):
    """MQTT devices."""

    abstract = True


class HttpDevice(ShardUser):
    """HTTP devices."""

    abstract = True


class WebSocketDevice(ShardUser):
    """WebSocket devices."""

    abstract = True


class ApiCaller(FastHttpUser):
    """Somebody, or something, that asks the admin endpoints how the node is."""

    abstract = True
    group: ClassVar[Group]
    host = "http://127.0.0.1:9090"
    network_timeout = API_DEADLINE_S
    connection_timeout = API_DEADLINE_S

    def wait_time(self) -> float:
        """Pause for about a period."""
        return self.group.period_s

    @task(4)
    def ready(self) -> None:
        """Ask as a load balancer does."""
        self.client.get("/readyz")

    @task(2)
    def healthy(self) -> None:
        """Ask as an orchestrator does."""
        self.client.get("/healthz")

    @task(1)
    def status(self) -> None:
        """Ask as an operator does."""
        self.client.get("/status")

    @task(1)
    def metrics(self) -> None:
        """Ask as Prometheus does."""
        self.client.get("/metrics")


KINDS: dict[str, type[User]] = {
    "mqtt": MqttShard,
    "http": HttpDevice,
    "websocket": WebSocketDevice,
    "api": ApiCaller,
}


def class_for(group: Group, fleet: Fleet, shard_max: int, name: str) -> type[User]:
    """Return a class whose users are the devices of a group."""
    weight = group.devices if group.speaks == "api" else group.shards(shard_max)[0]
    return type(
        name,
        (KINDS[group.speaks],),
        {
            "abstract": False,
            "group": group,
            "fleet": fleet,
            "weight": weight,
            "__doc__": KINDS[group.speaks].__doc__,
        },
    )


def target_of(options: object) -> Target:
    """Return the target that Locust's command line names."""
    return Target(**{field: getattr(options, f"to_{field}") for field in Target.__struct_fields__})
