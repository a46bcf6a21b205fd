"""Ranking with every pair forwarded against each image forwarded once, in one process and interleaved.

The pair loop is what rankers in use do: every ordered pair of images of different tiers, in batches of 32 pairs, both
images of a pair through the frozen backbone, the head of 674,177 parameters (at 1,024 features), margin loss 1.0, AdamW
1e-4, clipping at 1. Ours is made of this project's parts: the scorer, the pair loss over whole batches of images, the
embedding cache. The backbone is a small DINOv2 with random weights, so the accuracies compare ways of training, not
rankers.

- `epoch_ratio_N`: CPU seconds of an epoch over N images, theirs over ours without a cache. Theirs is measured on some
  of its batches, which all cost the same, and multiplied; the name says so. With --quick 64 images only.
- `cached_ratio_N`: 30 epochs of theirs over ours with the cache: encoding, writing, reading and 200 epochs of the head.
- `accuracy_difference`: held-out pair accuracy after training on 256 graded photographs, ours after those 200 epochs
  minus theirs after its 30, with the interval of a bootstrap over groups of images. The backbone is frozen, so theirs
  is trained on the features that it would compute again and again. Our 200 epochs and learning rate 1e-3 were set
  beforehand, not tuned. Without a value where the graded photographs are not at hand; left out with --quick, like
  what follows.
- `memory_mb`: peak of training and evaluating on 10,000 kept embeddings of 1,024 numbers, 75 million ordered pairs,
  above the memory that holds them.
- `count_ms`: milliseconds to count these pairs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks._measure import main, memory, missing, output_of, real_data, record
from hai.config.load import config_from_yaml_text
from hai.config.schema import RunConfig
from hai.data.augment import normalise
from hai.data.images import decode_image, fit_image
from hai.data.manifest import Manifest, build_manifest
from hai.embeddings import EmbeddingKey, EmbeddingStore
from hai.models.encoder import Encoder, backbone_revision, build_encoder, encode
from hai.models.scorer import build_scorer
from hai.pair_losses import PairLoss
from hai.rank_metrics import pair_counts, point_metrics, ranker_metrics, resampled_weights

_ROOT = Path(__file__).resolve().parent.parent
SIZE, BATCH, OWN_EPOCHS, THEIR_EPOCHS = 224, 64, 200, 30
BACKBONE = {
    "model_type": "dinov2",
    "architectures": ["Dinov2Model"],
    "hidden_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "image_size": SIZE,
    "patch_size": 14,
}
BACKBONE_WIDTH = 384
CONFIG = """
task: ranker
data: {{image_size: {size}, sources: [{{name: quality, path: "{data}"}}]}}
model: {{name: "hf:{backbone}", pretrained: false}}
pairs: {{loss: bradley_terry}}
"""
FLOORS = {64: 80.0, 256: 300.0}


def run(quick: bool) -> list[dict[str, Any]]:
    """Measure; each record says whether it keeps its floor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory(prefix="hai-benchmark-") as scratch:
            return _measured(Path(scratch), quick)
    finally:
        torch.set_num_threads(threads)


def _measured(scratch: Path, quick: bool) -> list[dict[str, Any]]:
    (scratch / "config.json").write_text(json.dumps(BACKBONE), encoding="utf-8")
    data = real_data() / "quality"
    has_data = (data / "metadata.csv").is_file()
    text = CONFIG.format(size=SIZE, data=data, backbone=scratch)
    config = config_from_yaml_text(text, "benchmark")
    encoder = build_encoder(config.model, SIZE, config.seed).eval().requires_grad_(False)
    records = []
    repeats, batches = (1, 1) if quick else (3, 2)
    rng = np.random.default_rng(0)
    for count in list(FLOORS)[: 1 if quick else None]:
        images = torch.from_numpy(rng.integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8))
        tier = torch.arange(count) % 4
        epoch, cached = [], []
        pairs = _ordered_pairs(tier)
        num_batches = -(-len(pairs) // 32)
        encoder(normalise(images[:32])), encode(encoder, normalise(images[:1]))  # picks kernels, takes memory
        for number in range(repeats):
            theirs = _pair_batches(config, encoder, images, pairs, tier, batches) / batches * num_batches
            ours = _image_epoch(config, encoder, images, tier)
            kept = _cached_training(config, encoder, images, tier, scratch / f"{count}-{number}")
            epoch.append(theirs / ours)
            cached.append(THEIR_EPOCHS * theirs / kept)
        scaled = f"theirs from {batches} of {num_batches} batches"
        records.append(record(f"epoch_ratio_{count}: {scaled}", epoch, FLOORS[count]))
        records.append(record(f"cached_ratio_{count}: 30 epochs to {OWN_EPOCHS}", cached, 1000.0))
    if quick:
        return records
    accuracy = _accuracy(config, encoder) if has_data else missing("accuracy_difference")
    return [*records, accuracy, *_memory()]


def _ordered_pairs(tier: Tensor) -> Tensor:
    return torch.nonzero(tier[:, None] != tier[None, :])


def _head(config: RunConfig, width: int, seed: int = 0) -> nn.Module:
    return build_scorer(config.model_copy(update={"seed": seed}), SIZE, width=width)


def _scores(head: nn.Module, features: Tensor) -> Tensor:
    outputs: Tensor = head({"embedding": features, "index": torch.arange(len(features))})
    return outputs[:, 0, 0]


# -- theirs ------------------------------------------------------------------------------------------------------------


def _pair_batches(
    config: RunConfig, encoder: Encoder, images: Tensor, pairs: Tensor, tier: Tensor, batches: int
) -> float:
    """Return the CPU seconds of some batches of the pair loop."""
    head = _head(config, BACKBONE_WIDTH).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4, weight_decay=0.01)
    pairs = pairs[torch.randperm(len(pairs))]
    began = time.process_time()
    for some in torch.split(pairs, 32)[:batches]:
        with torch.no_grad():
            left, right = (encoder(normalise(images[some[:, side]])) for side in (0, 1))
        _pair_step(head, optimizer, left, right, tier[some])
    return time.process_time() - began


def _pair_step(head: nn.Module, optimizer: torch.optim.Optimizer, left: Tensor, right: Tensor, tier: Tensor) -> None:
    target = torch.where(tier[:, 0] < tier[:, 1], 1.0, -1.0)
    loss = nn.functional.margin_ranking_loss(_scores(head, left), _scores(head, right), target, margin=1.0)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(head.parameters(), 1.0)
    optimizer.step()


# -- ours --------------------------------------------------------------------------------------------------------------


def _image_epoch(config: RunConfig, encoder: Encoder, images: Tensor, tier: Tensor) -> float:
    """Return the CPU seconds of an epoch in which each image is forwarded once."""
    head = _head(config, BACKBONE_WIDTH).train()
    step = _image_step(config, head)
    began = time.process_time()
    for some in torch.split(torch.randperm(len(images)), BATCH):
        step(encode(encoder, normalise(images[some])), tier[some], some)
    return time.process_time() - began


def _image_step(config: RunConfig, head: nn.Module, rate: float = 1e-3) -> Callable[[Tensor, Tensor, Tensor], None]:
    loss_of = PairLoss(config.pairs, 4, config.seed)
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=0.01, fused=True)

    def step(features: Tensor, tier: Tensor, index: Tensor) -> None:
        outputs = head({"embedding": features, "index": index})
        optimizer.zero_grad()
        loss_of(outputs, {"label": tier, "index": index}, epoch=0).backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()

    return step


def _cached_training(config: RunConfig, encoder: Encoder, images: Tensor, tier: Tensor, folder: Path) -> float:
    """Return the CPU seconds of encoding once, keeping, reading and training the head."""
    began = time.process_time()
    features = encode(encoder, normalise(images))
    revision = backbone_revision(config.model, config.seed)
    key = EmbeddingKey(revision, SIZE, "resize", "cls", "float32", "float32")
    store = EmbeddingStore(str(folder), key, features.shape[1])
    sha256 = np.random.default_rng(1).integers(0, 256, (len(images), 32), dtype=np.uint8)
    store.add(sha256, features.numpy())
    _train_head(config, torch.from_numpy(store.read(sha256)), tier, seed=0)
    return time.process_time() - began


def _train_head(config: RunConfig, features: Tensor, tier: Tensor, seed: int, epochs: int = OWN_EPOCHS) -> nn.Module:
    head = _head(config, features.shape[1], seed).train()
    step = _image_step(config, head)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for some in torch.split(torch.randperm(len(features), generator=generator), BATCH):
            if len(some) > 1:
                step(features[some], tier[some], some)
    return head


# -- accuracy ----------------------------------------------------------------------------------------------------------


def _accuracy(config: RunConfig, encoder: Encoder) -> dict[str, Any]:
    manifest = build_manifest(config.data, config.seed, task="ranker")
    rows = {split: manifest.indices(split) for split in ("train", "test")}
    rows["train"] = np.random.default_rng(0).permutation(rows["train"])[: max(FLOORS)]
    features, tiers = {}, {}
    for split, chosen in rows.items():
        features[split] = torch.cat([encode(encoder, normalise(image)) for image in _images(manifest, chosen)])
        tiers[split] = torch.from_numpy(manifest.label[chosen].astype(np.int64))
    ours = _train_head(config, features["train"], tiers["train"], 0)
    theirs = _pair_training(config, features["train"], tiers["train"], 0, THEIR_EPOCHS)
    scores = [_scored(head, features["test"]) for head in (ours, theirs)]
    tier, group = tiers["test"].numpy(), [manifest.group[row] for row in rows["test"]]
    own, other = (point_metrics(score, tier)["pair_accuracy"] or 0.0 for score in scores)
    print(f"held-out pair accuracy: ours {own:.4f}, the pair loop's {other:.4f}", file=sys.stderr)
    better, worse = np.nonzero(tier[:, None] < tier[None, :])
    gains = [(score[better] > score[worse]).astype(float) for score in scores]
    drawn = []
    for weights in resampled_weights(group, len(tier), 1000, 0):
        weight = weights[:, better] * weights[:, worse]
        drawn.append(weight @ (gains[0] - gains[1]) / weight.sum(axis=1))
    low, high = np.quantile(np.concatenate(drawn), (0.025, 0.975))
    found = {"value": own - other, "low": float(low), "high": float(high), "floor": 0.0, "holds": own >= other}
    return {"name": f"accuracy_difference: {own:.3f} and {other:.3f}, n {len(tier)}", **found}


def _images(manifest: Manifest, rows: NDArray[np.int64]) -> Iterator[Tensor]:
    for row in rows.tolist():
        pixels = fit_image(decode_image(manifest.read(row)), SIZE, "resize")
        yield torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))[None]


def _pair_training(config: RunConfig, features: Tensor, tier: Tensor, seed: int, epochs: int) -> nn.Module:
    head = _head(config, features.shape[1], seed).train()
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    pairs, generator = _ordered_pairs(tier), torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for some in torch.split(pairs[torch.randperm(len(pairs), generator=generator)], 32):
            _pair_step(head, optimizer, features[some[:, 0]], features[some[:, 1]], tier[some])
    return head


def _scored(head: nn.Module, features: Tensor) -> NDArray[np.float64]:
    with torch.no_grad():
        return _scores(head.eval(), features).double().numpy()


# -- memory ------------------------------------------------------------------------------------------------------------


def _memory() -> list[dict[str, Any]]:
    output = output_of([sys.executable, "-m", "benchmarks.ranker", "memory"], cwd=_ROOT)
    megabytes, milliseconds = json.loads(output.splitlines()[-1])
    return [record("memory_mb", [megabytes], most=200.0), record("count_ms", milliseconds)]


def _train_on_many() -> None:
    """Train on and evaluate 10,000 embeddings; print the megabytes that this took, and milliseconds of counting."""
    torch.set_num_threads(1)
    config = config_from_yaml_text("task: ranker\nmodel: {name: compact, pretrained: false}", "benchmark")
    features, tier = torch.randn(10_000, 1024), torch.arange(10_000) % 4
    _train_head(config, features[:64], tier[:64], 0, epochs=2)  # what a process needs in any case
    before = memory("VmRSS", anew=True)
    head = _train_head(config, features, tier, 0, epochs=2)
    score = np.concatenate([_scored(head, some) for some in torch.split(features, 256)])
    times = []
    for _ in range(5):
        began = time.perf_counter()
        pair_counts(score, tier.numpy())
        times.append(1e3 * (time.perf_counter() - began))
    ranker_metrics(score, tier.numpy(), bootstrap=200)
    print(json.dumps([(memory() - before) / 2**20, times]))


if __name__ == "__main__":
    if sys.argv[1:] == ["memory"]:
        _train_on_many()
    else:
        main(run)
