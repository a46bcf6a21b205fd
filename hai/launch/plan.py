"""What a launcher needs to know about a run, as plain JSON that travels to workers."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hai.config.schema import RunConfig, ScaleConfig
from hai.errors import ConfigError
from hai.types import Record

__all__ = ["Group", "Outcome", "Plan", "is_url", "located", "plan_group"]


@dataclass(frozen=True)
class Plan:
    """One launch of one run.

    Args:
        config: the resolved config as JSON; every local path in it is absolute.
        storage: folder or URL of the runs, absolute.
        name: name of the run.
        attempt: id of this launch, which owns the run.
        resume: run or checkpoint elsewhere to start from.
        wait_for_upload: wait at the end until everything is confirmed on the storage.
        provenance: versions, commit, hardware and command of the driver.
        only_prepare: compute what training reads, such as embeddings, and train nothing.
    """

    config: str
    storage: str
    name: str
    attempt: str
    resume: str | None = None
    wait_for_upload: bool = False
    provenance: Record = field(default_factory=dict)
    only_prepare: bool = False

    def record(self) -> Record:
        """Return the plan as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Outcome:
    """How a launch ended: `finished` or `interrupted`, with the run's summary."""

    status: str
    summary: Record


def is_url(path: str) -> bool:
    """Say whether a path names a protocol, such as gs:// or s3://."""
    return "://" in path


def located(config: RunConfig) -> RunConfig:
    """Make every local path absolute, because Ray's workers run in a folder of their own."""

    def absolute(path: str | None) -> str | None:
        return path if path is None or is_url(path) else str(Path(path).expanduser().absolute())

    storage = config.storage or os.environ.get("HAI_STORAGE") or "runs"
    sources = [
        source.model_copy(update={"path": absolute(source.path), "image_dir": absolute(source.image_dir)})
        for source in config.data.sources
    ]
    pretrained, name = config.model.pretrained, config.model.name
    if name.startswith("hf:") and Path(name[3:]).expanduser().is_dir():
        name = f"hf:{absolute(name[3:])}"
    return config.model_copy(
        update={
            "storage": absolute(storage),
            "data": config.data.model_copy(
                update={"sources": sources, "embedding_cache": absolute(config.data.embedding_cache)}
            ),
            "model": config.model.model_copy(
                update={
                    "name": name,
                    "pretrained": absolute(pretrained) if isinstance(pretrained, str) else pretrained,
                }
            ),
        }
    )


@dataclass(frozen=True)
class Group:
    """The workers of a run: from `least` to `most` of them, with `cpus` CPUs and, if `use_gpu`, a GPU each."""

    least: int
    most: int
    cpus: int
    use_gpu: bool


def plan_group(scale: ScaleConfig, *, num_cpus: int, num_gpus: int) -> Group:
    """Work out the workers that `scale` asks for on what a machine or cluster has.

    Raises:
        ConfigError: it has fewer GPUs or CPUs than the workers need.
    """
    use_gpu = num_gpus > 0 if scale.use_gpu is None else scale.use_gpu
    if isinstance(scale.num_workers, str):
        low, _, high = scale.num_workers.partition(":")
        least, most = int(low), int(high or low)
    else:
        least = most = scale.num_workers or (max(num_gpus, 1) if use_gpu else 1)
    if use_gpu and least > num_gpus:
        asked = f"scale.num_workers = {scale.num_workers}" if scale.num_workers else "scale.use_gpu = true"
        raise ConfigError(
            f"{asked}: the cluster has {num_gpus} GPUs; ask for fewer workers, or set scale.use_gpu=false"
        )
    cpus = scale.cpus_per_worker or max(1, num_cpus // most)
    if least * cpus > num_cpus:
        raise ConfigError(
            f"scale.num_workers = {scale.num_workers} with {cpus} CPUs each: the cluster has {num_cpus} CPUs; "
            "ask for fewer workers or lower scale.cpus_per_worker"
        )
    return Group(least, most, cpus, use_gpu)
