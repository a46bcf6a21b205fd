"""Two small tasks on vectors: what the loop must do is visible in seconds, and neither knows of process groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from hai.config.schema import RunConfig
from hai.data.draws import uniform
from hai.tasks.base import Datasets, Progress
from hai.types import Arrays, Batch, Record

WIDTH = 6


class VectorDataset:
    """Labelled vectors in memory; training adds keyed noise."""

    def __init__(self, vectors: np.ndarray, labels: np.ndarray, seed: int) -> None:
        self.vectors, self.labels, self._seed = vectors.astype(np.float32), labels, seed
        self.seen: list[tuple[int, int]] = []

    def __len__(self) -> int:
        return len(self.labels)

    def strata(self) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(self), dtype=np.int64), np.ones(1)

    def batches(
        self, requests: Iterable[tuple[int, np.ndarray]], *, device: torch.device, training: bool
    ) -> Iterator[Batch]:
        for epoch, positions in requests:
            if training:
                self.seen += [(epoch, int(position)) for position in positions]
            yield {
                "image": torch.from_numpy(self.vectors[positions]).to(device),
                "index": torch.from_numpy(positions).to(device),
                "label": torch.from_numpy(self.labels[positions]).to(device),
            }

    def names(self, positions: np.ndarray) -> list[str]:
        return [f"vector-{position}" for position in positions]

    def prepare(self, batch: Batch, *, epoch: int, training: bool) -> Batch:
        if not training:
            return batch
        index = batch["index"].cpu().numpy()
        noise = uniform(self._seed, epoch, index[:, None], np.arange(WIDTH)[None]) - 0.5
        return {**batch, "image": batch["image"] + 0.1 * torch.from_numpy(noise).float().to(batch["image"].device)}


class ToyTask:
    """Classify vectors; `pairs = True` ranks them instead: a loss over all pairs of the global batch."""

    name, metric = "toy", "accuracy"

    def __init__(
        self, config: RunConfig, *, pairs: bool = False, dropout: float = 0.0, batch_norm: bool = False, size: int = 96
    ) -> None:
        self.config, self.pairs, self._dropout, self._batch_norm, self._size = config, pairs, dropout, batch_norm, size

    def build_datasets(self, *, progress: Progress | None = None) -> Datasets:
        rng = np.random.default_rng(0)
        truth = rng.normal(size=WIDTH)
        vectors = rng.normal(size=(self._size + 32, WIDTH))
        labels = (vectors @ truth + 0.3 * rng.normal(size=len(vectors)) > 0).astype(np.int64)
        cut = self._size
        self.training = VectorDataset(vectors[:cut], labels[:cut], self.config.seed)
        validation = VectorDataset(vectors[cut:], labels[cut:], self.config.seed)
        return Datasets({"train": self.training, "val": validation}, identity="toy", table=[])

    def prepare(self, workers: object, **_: object) -> bool:
        return True

    def build_model(self) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed)
            middle = [nn.BatchNorm1d(16)] if self._batch_norm else []
            drop = [nn.Dropout(self._dropout)] if self._dropout else []
            return nn.Sequential(nn.Linear(WIDTH, 16), *middle, nn.Tanh(), *drop, nn.Linear(16, 1 if self.pairs else 2))

    def backbone(self, model: nn.Module) -> set[str]:
        return {"0.weight", "0.bias"}

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch["image"])

    def loss(self, outputs: Tensor, batch: Batch, *, epoch: int) -> Tensor:
        if not self.pairs:
            return nn.functional.cross_entropy(outputs, batch["label"])
        score, label = outputs[:, 0], batch["label"]
        difference = score[:, None] - score[None, :]
        wins = label[:, None] > label[None, :]
        return nn.functional.softplus(-difference[wins]).mean()

    def needs_global_batch(self, epoch: int) -> bool:
        return self.pairs

    def statistics(self, outputs: Tensor, batch: Batch) -> Tensor:
        guess = (outputs[:, 0] > 0) if self.pairs else outputs.argmax(dim=1)
        return (guess.long() == batch["label"]).sum().reshape(1)

    def training_metrics(self, statistics: list[float]) -> dict[str, float]:
        return {"correct": statistics[0]}

    def predict(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        outputs = self.outputs(model, batch)
        return {"label": batch["label"], "logit": outputs[:, -1] - (0 if self.pairs else outputs[:, 0])}

    def fit(self, predictions: Arrays) -> Record:
        return {"threshold": 0.5}

    def metrics(self, predictions: Arrays) -> dict[str, float]:
        return {"accuracy": float(((predictions["logit"] > 0) == predictions["label"]).mean())}
