"""Who of several targets gets a request, and who gets a copy of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from routing.mesh.compile.messages import Config, number, share, yes
from routing.mesh.model.routes import WeightedTarget
from routing.mesh.model.splitting import Mirror, Sticky

Clusters = Callable[[WeightedTarget], str]
"""Gives the cluster of a target."""
STEPS: Final = 1_000_000
"""Sticky weights add up to this, whatever theirs do: who is sent where depends on shares alone."""


def towards(targets: Sequence[WeightedTarget], cluster: Clusters, sticky: Sticky | None) -> Config:
    """Return where requests go: by chance, or always to the same target for one value of a header.

    A request without the header goes by chance.
    """
    if len(targets) == 1:
        return {"cluster": cluster(targets[0])}
    names = [cluster(target) for target in targets]
    weights = [target.weight for target in targets]
    if sticky is None:
        return {"weighted_clusters": {"clusters": _shares(names, weights)}}
    return {
        "weighted_clusters": {"clusters": _shares(names, steps(weights)), "use_hash_policy": yes()},
        "hash_policy": [{"header": {"header_name": sticky.header}}],
    }


def steps(weights: Sequence[int]) -> list[int]:
    """Return weights of the same shares that add up to STEPS.

    Each target so has a range of hashes, in the order of the targets, and when shares change only who is
    between the old and the new ends of ranges is sent elsewhere.
    """
    total, before, made = sum(weights), 0, []
    for index in range(len(weights)):
        end = round(STEPS * sum(weights[: index + 1]) / total)
        made.append(end - before)
        before = end
    return made


def mirrored(mirror: Mirror | None, cluster: Clusters) -> Config:
    """Return who gets copies, under the Host that was asked for."""
    if mirror is None:
        return {}
    target = WeightedTarget(virtual_node=mirror.virtual_node, port=mirror.port, weight=1)
    policy = {
        "cluster": cluster(target),
        "runtime_fraction": {"default_value": share(mirror.percent)},
        "disable_shadow_host_suffix_append": True,
    }
    return {"request_mirror_policies": [policy]}


def _shares(names: list[str], weights: Sequence[int]) -> list[Config]:
    return [{"name": name, "weight": number(weight)} for name, weight in zip(names, weights, strict=True)]
