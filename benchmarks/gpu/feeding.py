"""Whether the ring loader keeps a GPU busy: training from JPEGs against training on a batch that is there already."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._images import draw_faces
from benchmarks.gpu.device import Setting, record_of, turns_of
from benchmarks.gpu.training import Case, OwnStep
from hai.config.load import load_config
from hai.config.schema import RunConfig
from hai.data.dataset import BatchStream, ImageDataset
from hai.data.manifest import build_manifest
from hai.models import build_model
from hai.types import Batch

__all__ = ["run"]

_SHARE = 0.9
_RECIPE = Path(__file__).resolve().parents[2] / "configs" / "detector" / "baseline.yaml"
_CASES = (Case("timm:efficientnet_b4", 224, 32), Case("timm:efficientnet_b0", 224, 32))
_TINY = (Case("timm:mobilenetv3_small_050", 64, 4),)


def run(setting: Setting) -> list[dict[str, Any]]:
    """Measure all cases on the same made faces."""
    with tempfile.TemporaryDirectory(prefix="hai-benchmark-") as scratch:
        folder = draw_faces(Path(scratch) / "faces", 32 if setting.is_tiny else 2000)
        return [
            record for case in (_TINY if setting.is_tiny else _CASES) for record in _measured(setting, case, folder)
        ]


def _measured(setting: Setting, case: Case, folder: Path) -> list[dict[str, Any]]:
    config = case.config(
        data={
            "sources": [{"path": str(folder), "splits": ["train"]}],
            "image_size": case.size,
            "cache_decoded": "off",
        },
        augment=load_config(str(_RECIPE)).augment.model_dump(),
    )
    dataset = ImageDataset(build_manifest(config.data, config.seed, require=("train",)), config, "train")
    model = build_model(config.model, case.size, config.seed)

    def prepare(batch: Batch) -> Batch:
        return dataset.prepare(batch, epoch=0, training=True)

    def fed() -> OwnStep:
        stream = _stream(setting, config, dataset)
        return OwnStep(setting, model, case, config=config, batches=stream.__next__, prepare=prepare)

    def resident() -> OwnStep:
        stream = _stream(setting, config, dataset)
        batch = next(stream)
        stream.close()
        return OwnStep(setting, model, case, config=config, batches=lambda: batch, prepare=prepare)

    def loaded() -> Callable[[], int]:
        stream = _stream(setting, config, dataset)
        return lambda: len(next(stream)["index"])

    warm_up = 2 if setting.is_tiny else 8
    turns = turns_of(setting, {"fed": fed, "resident": resident, "loader": loaded}, warm_up)
    shares = [one.rate / other.rate for one, other in zip(turns["fed"], turns["resident"], strict=False)]
    return [
        record_of(
            f"{case.name}, fed over resident", shares, floor=_SHARE, without=False if turns["resident"] else None
        ),
        *(
            record_of(f"{case.name}, {name}_images_per_second", [turn.rate for turn in found])
            for name, found in turns.items()
        ),
    ]


def _stream(setting: Setting, config: RunConfig, dataset: ImageDataset) -> BatchStream:
    size = config.train.global_batch_size

    def requests() -> Iterator[tuple[int, Any]]:
        epoch = 0
        while True:
            order = np.random.default_rng(epoch).permutation(len(dataset))
            for start in range(0, len(order) - size + 1, size):
                yield epoch, order[start : start + size]
            epoch += 1

    return dataset.batches(requests(), device=setting.device, training=True)
