"""What a launcher needs to know about a run, as plain JSON that travels to workers."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from hai.config.schema import RunConfig
from hai.data.archives import is_archive
from hai.data.kaggle import is_kaggle
from hai.data.remote import is_url, plain_url
from hai.types import Record

__all__ = ["Outcome", "Plan", "located"]


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
        until_epoch: stop, everything saved, at the first evaluation at or after this epoch; None: train to the end.
        provenance: versions, commit, hardware and command of the driver.
        only_prepare: compute what training reads, such as embeddings, and train nothing.
    """

    config: str
    storage: str
    name: str
    attempt: str
    resume: str | None = None
    wait_for_upload: bool = False
    until_epoch: float | None = None
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


def located(config: RunConfig) -> RunConfig:
    """Make every local path absolute, because Ray's workers run in a folder of their own."""

    def absolute(path: str | None) -> str | None:
        return path if path is None or is_url(path) or is_kaggle(path) else str(Path(path).expanduser().absolute())

    def image_dir(path: str, start: str | None) -> str | None:
        """Leave alone what starts inside of an archive."""
        return start if is_kaggle(path) or is_archive(plain_url(path)) else absolute(start)

    storage = config.storage or os.environ.get("HAI_STORAGE") or "runs"
    sources = [
        source.model_copy(update={"path": absolute(source.path), "image_dir": image_dir(source.path, source.image_dir)})
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
