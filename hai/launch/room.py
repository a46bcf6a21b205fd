"""How many workers of which size fit on the machines of a cluster, also on those that it may still start."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hai.config.schema import ScaleConfig
from hai.errors import ConfigError

__all__ = ["GROWS_TO", "Group", "Machine", "machines_of", "num_workers_in", "plan_group", "shared_cpus"]

GROWS_TO = "HAI_GROWS_TO"
_KIND = re.compile(r"(?P<count>\d+) +CPU=(?P<cpus>\d+)(?: +GPU=(?P<gpus>\d+))?")


class Machine(NamedTuple):
    """What workers can have of one machine."""

    cpus: int
    gpus: int


def machines_of(nodes: Iterable[Mapping[str, Any]], environment: Mapping[str, str]) -> list[Machine]:
    """List the machines of a cluster.

    Args:
        nodes: as `ray.nodes()` describes them; those that are gone do not count.
        environment: HAI_GROWS_TO says up to how many machines of a kind the cluster starts by itself, as in
            `4 CPU=8 GPU=1; 2 CPU=16`. Ray itself does not tell.

    Raises:
        ConfigError: HAI_GROWS_TO reads otherwise.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    machines = Counter(Machine(int(has.get("CPU", 0)), int(has.get("GPU", 0))) for has in alive)
    for text in filter(None, map(str.strip, environment.get(GROWS_TO, "").split(";"))):
        kind = _KIND.fullmatch(text)
        if kind is None:
            raise ConfigError(f"{GROWS_TO}: {text!r}; write a number of machines and what each has: 4 CPU=8 GPU=1")
        machine = Machine(int(kind["cpus"]), int(kind["gpus"] or 0))
        machines[machine] = max(machines[machine], int(kind["count"]))
    return list(machines.elements())


def num_workers_in(machines: Iterable[Machine], cpus: int, *, use_gpu: bool) -> int:
    """Count the workers of so many CPUs, and one GPU each if `use_gpu`, that fit; none spans two machines."""
    return sum(min(machine.cpus // cpus, machine.gpus if use_gpu else machine.cpus) for machine in machines)


def shared_cpus(machines: list[Machine], least: int, most: int, *, use_gpu: bool) -> int:
    """Return the most CPUs that each worker can have so that `most` of them fit, or else as many as do, or else 1."""
    sizes = range(max((machine.cpus for machine in machines), default=0), 0, -1)
    for count in range(min(most, num_workers_in(machines, 1, use_gpu=use_gpu)), least - 1, -1):
        for cpus in sizes:
            if num_workers_in(machines, cpus, use_gpu=use_gpu) >= count:
                return cpus
    return 1


@dataclass(frozen=True)
class Group:
    """The workers of a run: from `least` to `most` of them, with `cpus` CPUs and, if `use_gpu`, a GPU each."""

    least: int
    most: int
    cpus: int
    use_gpu: bool


def plan_group(scale: ScaleConfig, machines: list[Machine]) -> Group:
    """Work out the workers that `scale` asks for on what a cluster has or can start.

    Raises:
        ConfigError: the workers need more GPUs or CPUs than that.
    """
    num_gpus, num_cpus = sum(machine.gpus for machine in machines), sum(machine.cpus for machine in machines)
    use_gpu = num_gpus > 0 if scale.use_gpu is None else scale.use_gpu
    if isinstance(scale.num_workers, str):
        low, _, high = scale.num_workers.partition(":")
        least, most = int(low), int(high or low)
    else:
        least = most = scale.num_workers or (max(num_gpus, 1) if use_gpu else 1)
    if use_gpu and least > num_gpus:
        asked = f"scale.num_workers = {scale.num_workers}" if scale.num_workers else "scale.use_gpu = true"
        raise ConfigError(
            f"{asked}: the cluster has {num_gpus} GPUs; ask for fewer workers, set scale.use_gpu=false, or, if it starts "
            f"machines by itself, say in {GROWS_TO} which"
        )
    cpus = scale.cpus_per_worker or shared_cpus(machines, least, most, use_gpu=use_gpu)
    room = num_workers_in(machines, cpus, use_gpu=use_gpu)
    if least > room:
        raise ConfigError(
            f"scale.num_workers = {scale.num_workers} with {cpus} CPUs each: the cluster has {num_cpus} CPUs, room for "
            f"{room} such workers, none on two machines; ask for fewer, lower scale.cpus_per_worker, or, if it starts "
            f"machines by itself, say in {GROWS_TO} which"
        )
    return Group(least, most, cpus, use_gpu)
