"""The ranker: one score per image that orders artworks, from tiers or from left/right comparisons."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from hai.config.schema import RunConfig
from hai.data.dataset import ImageDataset
from hai.data.manifest import Manifest, build_manifest
from hai.data.pairs import ComparisonDataset
from hai.distributed import Workers
from hai.embeddings import EmbeddedDataset, EmbeddingKey, EmbeddingStore, compute_embeddings
from hai.errors import ConfigError
from hai.models.encoder import backbone_revision, build_encoder, encode, rounded_image_size
from hai.models.scorer import Scorer, build_scorer, feature_width, is_frozen, scores_of
from hai.pair_losses import PairLoss, pair_statistics
from hai.precision import precision_on
from hai.rank_metrics import comparison_point_metrics, point_metrics
from hai.rank_results import comparisons_among
from hai.score_scale import fit_comparison_scale, fit_scale
from hai.tasks.base import Dataset, Datasets, Progress, Say
from hai.types import SPLITS, STOP, Arrays, Batch, Record

__all__ = ["RankerTask", "keeps_embeddings"]


def keeps_embeddings(config: RunConfig) -> bool:
    """Say whether images are encoded once, before training, and their features kept.

    Raises:
        ConfigError: `data.cache_embeddings = on` and the features of an image change in training.
    """
    wanted = config.data.cache_embeddings
    if wanted == "off":
        return False
    reasons = []
    if not is_frozen(config.model):
        reasons.append("the backbone learns; set model.freeze_backbone=true and model.unfreeze_after_epochs=null")
    if config.data.geometry == "crop":
        reasons.append("training crops differ; set data.geometry=pad or resize")
    if config.augment.changes_images:
        reasons.append("augment changes the images; set its probabilities to 0")
    if reasons and wanted == "on":
        raise ConfigError("\n".join(f"data.cache_embeddings = on; {reason}" for reason in reasons))
    return not reasons


class RankerTask:
    """Learn scores; outputs are [B, H, O], or [B, 2, H, O] of comparisons, see `hai.models.scorer`."""

    name = "ranker"
    metric = "pair_accuracy"

    def __init__(self, config: RunConfig) -> None:
        asked = config.data.image_size
        size = rounded_image_size(config.model, asked)
        self._config = config.model_copy(update={"data": config.data.model_copy(update={"image_size": size})})
        self._notes: tuple[str, ...] = ()
        if size != asked:
            self._notes = (
                f"data.image_size = {asked}: {config.model.name} cuts images into patches, {size} is the nearest size "
                "without a rest and is used",
            )
        self._keeps = keeps_embeddings(config)
        self._loss = PairLoss(config.pairs, len(config.data.tiers), config.seed)
        self._device = torch.device("cpu")
        self._manifest: Manifest | None = None

    def build_datasets(self, *, progress: Progress | None = None) -> Datasets:
        """Read the sources into one manifest and cut it by split; raises DataError."""
        config, manifest = self._config, self._read(progress)
        store = self._store() if self._keeps else None
        splits: dict[str, Dataset] = {}
        for split in SPLITS:
            if len(manifest.indices(split)):
                splits[split] = (
                    EmbeddedDataset(manifest, config, split, store) if store else ImageDataset(manifest, config, split)
                )
        if len(manifest.comparisons):
            splits["train"] = ComparisonDataset(splits["train"], manifest, "train")
        problems = tuple(f"{problem.path}: {problem.reason}" for problem in manifest.problems)
        notes = (*self._notes, *manifest.warnings, *problems)
        return Datasets(splits, manifest.identity, manifest.table(), notes, manifest)

    def metric_names(self) -> list[str]:
        """Name what `metrics` gives of the validation split."""
        manifest = self._read(None)
        rows = manifest.indices("val")
        return list(self.metrics({"index": rows, "label": manifest.label[rows], "score": np.zeros(len(rows))}))

    def prepare(self, workers: Workers, *, say: Say, asked: Callable[[], int]) -> bool:
        """Encode, on all workers, the images whose features are not kept yet."""
        self._device = workers.device
        if not self._keeps:
            return True
        config, manifest, store = self._config, self._read(None), self._store(say)
        images = ImageDataset(manifest, config, None)
        encoder = None

        def encoded(batch: Batch) -> Tensor:
            nonlocal encoder
            if encoder is None:
                encoder = build_encoder(config.model, config.data.image_size, config.seed).to(workers.device).eval()
            precision = precision_on(workers.device, config.train.mixed_precision)
            with torch.autocast(workers.device.type, precision, enabled=precision is not None):
                return encode(encoder, images.prepare(batch, epoch=0, training=False)["image"])

        return compute_embeddings(store, images, encoded, workers, say=say, stop=lambda: asked() == STOP)

    def build_model(self) -> nn.Module:
        """Build the scorer; a frozen backbone is built when the first image comes."""
        return build_scorer(self._config, self._config.data.image_size)

    def backbone(self, model: nn.Module) -> set[str]:
        """Name the parameters of the backbone that learn or may learn."""
        assert isinstance(model, Scorer)
        return model.backbone_names()

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Forward images or kept features to [B, H, O], comparisons to [B, 2, H, O]."""
        outputs: Tensor = model(batch)
        return outputs

    def loss(self, outputs: Tensor, batch: Batch, *, epoch: int) -> Tensor:
        """Compute the loss over all valid pairs of the global batch."""
        return self._loss(outputs, batch, epoch=epoch)

    def needs_global_batch(self, epoch: int) -> bool:
        """Say whether the loss goes over pairs of the batch; one over given comparisons is a plain mean."""
        return self._loss.needs_global_batch and not len(self._read(None).comparisons)

    def statistics(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Count correctly ordered pairs and all pairs: [2]."""
        return pair_statistics(scores_of(outputs, self._config.pairs).mean(dim=-1), batch["label"])

    def training_metrics(self, statistics: list[float]) -> dict[str, float]:
        """Pair accuracy of the training pairs as they were seen, augmentation and dropout included."""
        correct, pairs = statistics
        accuracy = correct / max(pairs, 1.0)
        return {"accuracy": accuracy, "pair_accuracy": accuracy}

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Predict score [B] and the heads' spread [B]; on CPUs image by image, so that batches do not matter."""
        size = 1 if batch["index"].device.type == "cpu" else len(batch["index"])
        parts = [
            {name: values[i : i + size] for name, values in batch.items()} for i in range(0, len(batch["index"]), size)
        ]
        scores = torch.cat([scores_of(self.outputs(model, part).float(), self._config.pairs) for part in parts])
        spread = scores.std(dim=1, correction=0)
        return {"score": scores.mean(dim=1), "spread": spread, "label": batch["label"]}

    def fit(self, predictions: Arrays) -> Record:
        """Fit what turns scores into probabilities, an Elo-like scale and tiers."""
        manifest = self._read(None)
        score = predictions["score"].astype(np.float64)
        if len(manifest.comparisons):
            return fit_comparison_scale(score, comparisons_among(manifest, predictions["index"])).record()
        return fit_scale(score, predictions["label"], len(manifest.labels)).record()

    def metrics(self, predictions: Arrays) -> dict[str, float | None]:
        """Compute the metrics of a split over all its pairs; of several sources also `METRIC/SOURCE`, over its own."""
        manifest = self._read(None)
        score = predictions["score"].astype(np.float64)
        if len(manifest.comparisons):
            return comparison_point_metrics(score, comparisons_among(manifest, predictions["index"]))
        human = None if manifest.score is None else manifest.score[predictions["index"]]
        found = point_metrics(score, predictions["label"], human=human)
        sources = np.array([manifest.source[row] for row in predictions["index"]])
        names = np.unique(sources).tolist()
        for name in names if len(names) > 1 else ():
            own = point_metrics(score[sources == name], predictions["label"][sources == name])
            found |= {f"{metric}/{name}": own.get(metric) for metric in ("pair_accuracy", "srcc")}
        return found

    def _read(self, progress: Progress | None) -> Manifest:
        """Read the sources once."""
        if self._manifest is None:
            config = self._config
            self._manifest = build_manifest(config.data, config.seed, task="ranker", progress=progress)
            if len(self._manifest.comparisons) and config.pairs.loss == "coral":
                raise ConfigError("pairs.loss = coral; the data are comparisons and have no tiers; use bradley_terry")
        return self._manifest

    def _store(self, say: Say | None = None) -> EmbeddingStore:
        """Open the kept features of this backbone, input and precision."""
        config = self._config
        precision = precision_on(self._device, config.train.mixed_precision)
        key = EmbeddingKey(
            revision=backbone_revision(config.model, config.seed),
            image_size=config.data.image_size,
            geometry=config.data.geometry,
            features=config.model.features,
            compute="float32" if precision is None else str(precision).removeprefix("torch."),
            storage=config.data.embedding_precision,
        )
        width = feature_width(config.model, config.data.image_size)
        return EmbeddingStore(config.data.embedding_cache, key, width, **({"say": say} if say else {}))
