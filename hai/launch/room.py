"""How many workers of which size, or trials of a sweep, fit on the machines of a cluster and those it may start."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from hai.config.schema import ScaleConfig
from hai.config.sweep import SweepSettings
from hai.errors import ConfigError

__all__ = [
    "GROWS_TO",
    "Group",
    "Machine",
    "Room",
    "machines_of",
    "num_workers_in",
    "plan_group",
    "room_for",
    "shared_cpus",
]

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


def num_workers_in(machines: Iterable[Machine], cpus: int, gpus: float) -> int:
    """Count the workers of so many CPUs and GPUs, or parts of one, that fit; none spans two machines."""
    return sum(_num_on(machine, cpus, gpus) for machine in machines)


def _num_on(machine: Machine, cpus: int, gpus: float) -> int:
    fits = machine.cpus // cpus
    return min(fits, int((machine.gpus + 1e-6) // gpus)) if gpus else fits  # three thirds are one


def shared_cpus(machines: list[Machine], least: int, most: int, gpus: float) -> int:
    """Return the most CPUs that each worker can have so that `most` of them fit, or else as many as do, or else 1."""
    sizes = range(max((machine.cpus for machine in machines), default=0), 0, -1)
    for count in range(min(most, num_workers_in(machines, 1, gpus)), least - 1, -1):
        for cpus in sizes:
            if num_workers_in(machines, cpus, gpus) >= count:
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
            f"{asked}: the cluster has {num_gpus} GPUs; ask for fewer workers, set scale.use_gpu=false, or, if it "
            f"starts machines by itself, say in {GROWS_TO} which"
        )
    cpus = scale.cpus_per_worker or shared_cpus(machines, least, most, gpus=use_gpu)
    room = num_workers_in(machines, cpus, gpus=use_gpu)
    if least > room:
        raise ConfigError(
            f"scale.num_workers = {scale.num_workers} with {cpus} CPUs each: the cluster has {num_cpus} CPUs, room for "
            f"{room} such workers, none on two machines; ask for fewer, lower scale.cpus_per_worker, or, if it starts "
            f"machines by itself, say in {GROWS_TO} which"
        )
    return Group(least, most, cpus, use_gpu)


@dataclass(frozen=True)
class Room:
    """What a trial of a sweep gets, and how many trials fit at once.

    Args:
        workers: processes of a trial.
        cpus: of a worker.
        gpus: of a worker.
        trials: at once.
    """

    workers: int
    cpus: int
    gpus: float
    trials: int

    def __str__(self) -> str:
        each = f"{self.gpus:g} GPU and {self.cpus} CPU" if self.gpus else f"{self.cpus} CPU"
        workers = f"{self.workers} workers with {each} each" if self.workers > 1 else f"{each} each"
        return f"{self.trials} trial{'' if self.trials == 1 else 's'} at once, {workers}"


def room_for(settings: SweepSettings, scale: ScaleConfig, machines: list[Machine]) -> Room:
    """Work out how trials share a cluster so that each can start whole and none waits for ever.

    Args:
        settings: of the sweep.
        scale: of the base config: `use_gpu` and `cpus_per_worker` count.
        machines: that the cluster has or starts by itself; a worker lies on one of them.

    Raises:
        ConfigError: not even one trial fits.
    """
    num_gpus, num_cpus = sum(machine.gpus for machine in machines), sum(machine.cpus for machine in machines)
    use_gpu = num_gpus > 0 if scale.use_gpu is None else scale.use_gpu
    workers = settings.workers_per_trial
    gpus = (1.0 if settings.gpus_per_worker is None else settings.gpus_per_worker) if use_gpu else 0.0
    if workers > 1 and gpus not in (0.0, 1.0):
        raise ConfigError(
            f"sweep.gpus_per_worker = {gpus:g} with sweep.workers_per_trial = {workers}: the workers of one trial have "
            "a GPU each; set one of the two to 1"
        )
    cpus = settings.cpus_per_worker or scale.cpus_per_worker or 1
    if gpus and not (settings.cpus_per_worker or scale.cpus_per_worker):
        trials = sum(int((machine.gpus + 1e-6) // gpus) for machine in machines) // workers
        most = min(trials, settings.max_concurrent or trials) * workers
        cpus = shared_cpus(machines, workers, most, gpus)
    trials = num_workers_in(machines, cpus, gpus) // workers
    if trials == 0:
        kind = f"{gpus:g} GPU and {cpus} CPU" if gpus else f"{cpus} CPU"
        raise ConfigError(
            f"sweep.workers_per_trial = {workers} with {kind} each: the cluster has {num_gpus} GPUs and {num_cpus} "
            f"CPUs on {len(machines)} machine{'' if len(machines) == 1 else 's'}; lower sweep.workers_per_trial, "
            "sweep.cpus_per_worker or sweep.gpus_per_worker, set scale.use_gpu=false, or, if it starts machines by "
            f"itself, say in {GROWS_TO} which"
        )
    return Room(workers, cpus, gpus, min(trials, settings.max_concurrent or trials))
