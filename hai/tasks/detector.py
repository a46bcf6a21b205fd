"""The deepfake detector: real or fake, from one face crop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hai.by_source import metrics_by_source
from hai.calibration import calibrate
from hai.config.schema import RunConfig
from hai.data.dataset import ImageDataset
from hai.data.manifest import build_manifest
from hai.distributed import Workers
from hai.losses import DetectorLoss
from hai.metrics import point_metrics
from hai.models import backbone_parameters, build_model
from hai.tasks.base import Datasets, Progress, Say
from hai.types import LABELS, SPLITS, Arrays, Batch, Record

__all__ = ["DetectorTask"]


class DetectorTask:
    """Learn P(fake) of an image; outputs are logits [B, 2] of real and fake."""

    name = "detector"
    metric = "f1_macro"

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._loss: DetectorLoss | None = None
        self._groups: list[str] = []
        self._videos: list[str] = []
        self._sources: list[str] = []
        self._validation: ImageDataset | None = None

    def build_datasets(self, *, progress: Progress | None = None) -> Datasets:
        """Read the sources into one manifest and cut it by split; raises DataError."""
        manifest = build_manifest(self._config.data, self._config.seed, progress=progress)
        splits = {
            split: ImageDataset(manifest, self._config, split) for split in SPLITS if len(manifest.indices(split))
        }
        self._groups, self._sources, self._validation = manifest.group, manifest.source, splits.get("val")
        self._videos = manifest.video or manifest.group
        counts = np.bincount(splits["train"].labels, minlength=len(LABELS))
        self._loss = DetectorLoss(self._config.loss, [int(count) for count in counts])
        notes = (*manifest.warnings, *(f"{problem.path}: {problem.reason}" for problem in manifest.problems))
        return Datasets(splits, manifest.identity, manifest.table(), notes, manifest, manifest.crop_settings)

    def metric_names(self) -> list[str]:
        """Name what `metrics` gives of the validation split."""
        split = self._validation
        assert split is not None, "build_datasets comes first: videos and sources have metrics of their own"
        unsure = np.full(len(split), 0.5)
        return list(self.metrics({"index": split.rows, "label": split.labels, "probability_fake": unsure}))

    def prepare(self, workers: Workers, *, say: Say, asked: Callable[[], int]) -> bool:
        """Do nothing: images are read as they are."""
        return True

    def build_model(self) -> nn.Module:
        """Build the network of `model.name`."""
        return build_model(self._config.model, self._config.data.image_size, self._config.seed)

    def backbone(self, model: nn.Module) -> set[str]:
        """Name the parameters below the new head."""
        return backbone_parameters(model)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Forward images [B, 3, S, S] to logits [B, 2], or [B, K, 2] in training where a model has K outputs."""
        logits: Tensor = model(batch["image"])
        return logits

    def loss(self, outputs: Tensor, batch: Batch, *, epoch: int) -> Tensor:
        """Weigh cross-entropy, focal and soft-F1 loss."""
        assert self._loss is not None, "build_datasets comes first: class weights need the training labels"
        return self._loss(outputs, batch["label"], epoch)

    def needs_global_batch(self, epoch: int) -> bool:
        """Say whether soft-F1 is in force."""
        assert self._loss is not None
        return self._loss.needs_global_batch(epoch)

    def statistics(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Count (label, prediction) pairs: [4]."""
        logits = outputs[:, 0] if outputs.dim() == 3 else outputs
        pairs = batch["label"] * 2 + logits.argmax(dim=1)
        return F.one_hot(pairs, 4).sum(dim=0)  # torch.bincount would wait for the device at every step

    def training_metrics(self, statistics: list[float]) -> dict[str, float]:
        """Accuracy and macro-F1 of the training examples as they were seen, augmentation and dropout included."""
        confusion = np.asarray(statistics).reshape(2, 2)
        tp, total = np.diag(confusion), confusion.sum(axis=0) + confusion.sum(axis=1)
        f1 = np.divide(2 * tp, total, out=np.zeros(2), where=total > 0)
        return {"accuracy": float(tp.sum() / max(confusion.sum(), 1)), "f1_macro": float(f1.mean())}

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Predict label [B], logit of fake against real [B] and P(fake) [B]."""
        logits = self.outputs(model, batch).float()
        logit = logits[:, 1] - logits[:, 0]
        return {"label": batch["label"], "logit": logit, "probability_fake": torch.sigmoid(logit)}

    def fit(self, predictions: Arrays) -> Record:
        """Fit the temperature of the logits and the threshold on P(fake) that has the best macro-F1."""
        groups = [self._groups[row] for row in predictions["index"]] if self._groups else None
        return calibrate(predictions["label"], predictions["logit"], groups).record()

    def metrics(self, predictions: Arrays) -> dict[str, float | None]:
        """Compute the metrics at the threshold 0.5, also per video, and `METRIC/SOURCE`."""
        rows, label, probability = predictions["index"], predictions["label"], predictions["probability_fake"]
        videos = [self._videos[row] for row in rows] if self._videos else None
        sources = [self._sources[row] for row in rows] if self._sources else [""] * len(rows)
        return point_metrics(label, probability, video=videos) | metrics_by_source(label, probability, sources)
