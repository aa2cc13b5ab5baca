"""`headworks mesh register`: an instance of a service in AWS Cloud Map, for as long as it runs."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from typing import Annotated

import typer

from commands.common import USAGE, fail
from routing.discovery.active_check import BadTarget, Target, target_of
from routing.discovery.registrar import Check, RegisterError, Terms
from routing.discovery.registrar import register as keep_registered
from runtime.logs import make_log


def register(
    *,
    namespace: Annotated[str, typer.Option(help="The namespace of AWS Cloud Map.")],
    service: Annotated[str, typer.Option(help="The service in it.")],
    instance_id: Annotated[str, typer.Option(help="The name of the instance, its own in the service.")],
    ip: Annotated[str, typer.Option(help="Where it is called.")],
    port: Annotated[int, typer.Option(min=1, max=65_535)],
    region: Annotated[
        str, typer.Option("--cloud-map-region", envvar="AWS_REGION", help="The region of Cloud Map.")
    ],
    endpoint: Annotated[
        str, typer.Option("--cloud-map-endpoint", help="Another address of it than that of its region.")
    ] = "",
    attributes: Annotated[
        list[str] | None,
        typer.Option(
            "--attribute", help="NAME=VALUE, such as AVAILABILITY_ZONE=eu-west-1a. May be repeated."
        ),
    ] = None,
    check: Annotated[
        str, typer.Option(help="Asked whether it is well: http://HOST[:PORT]/PATH or tcp://HOST:PORT.")
    ] = "",
    check_interval_s: Annotated[float, typer.Option(min=0.1, help="Between two checks.")] = 5.0,
    check_timeout_s: Annotated[float, typer.Option(min=0.1, help="For the answer to one.")] = 2.0,
    healthy_after: Annotated[int, typer.Option(min=1, help="Checks in a row that pass.")] = 2,
    unhealthy_after: Annotated[int, typer.Option(min=1, help="Checks in a row that fail.")] = 3,
    confirm_s: Annotated[float, typer.Option(min=0.1, help="How often Cloud Map hears of it.")] = 30.0,
    drain_s: Annotated[
        float, typer.Option(min=0, help="How long callers have to leave it after SIGTERM.")
    ] = 30.0,
) -> None:
    """Keep an instance registered until SIGTERM: once it is well, again where it was lost, and not after."""
    try:
        family = "AWS_INSTANCE_IPV4" if ipaddress.ip_address(ip).version == 4 else "AWS_INSTANCE_IPV6"
    except ValueError:
        fail(f"--ip {ip} is not an IP address", USAGE)
    target = _target(check)
    terms = Terms(
        region=region,
        endpoint=endpoint,
        namespace=namespace,
        service=service,
        instance_id=instance_id,
        attributes={**_attributes(attributes), family: ip, "AWS_INSTANCE_PORT": str(port)},
        check=None
        if target is None
        else Check(target, check_interval_s, check_timeout_s, healthy_after, unhealthy_after),
        every_s=confirm_s,
        drain_s=drain_s,
    )
    try:
        asyncio.run(keep_registered(terms, make_log("info", "auto")))
    except RegisterError as error:
        fail(str(error))


def _target(check: str) -> Target | None:
    try:
        return target_of(check) if check else None
    except BadTarget as error:
        fail(f"--check {error}", USAGE)


def _attributes(values: Sequence[str] | None) -> dict[str, str]:
    made = {}
    for each in values or ():
        name, separator, value = each.partition("=")
        if not (name and separator and value) or name.startswith("AWS_"):
            fail(f"--attribute {each} is not NAME=VALUE, with a name that AWS has not taken", USAGE)
        made[name] = value
    return made
