"""What classic image statistics with gradient boosting make of the graded photographs: the bar for a small network.

Natural-scene statistics (Mittal, Moorthy and Bovik, No-Reference Image Quality Assessment in the Spatial Domain, 2012:
moments of locally normalised luminance and of products of neighbours, at two scales) and colour statistics (Hasler and
Süsstrunk, Measuring colourfulness in natural images, 2003), then scikit-learn's gradient boosting on the human score.
Settings are chosen on the validation split; the test split is measured once. `HAI_TEST_DATA` names the folder with
`quality/`.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter, laplace
from sklearn.ensemble import HistGradientBoostingRegressor

from benchmarks._measure import real_data
from hai.config.load import config_from_yaml_text
from hai.data.manifest import Manifest, build_manifest
from hai.errors import DataError
from hai.rank_metrics import point_metrics, ranker_metrics
from hai.types import Record

Floats = NDArray[np.float64]

_SETTINGS = [
    {"max_iter": trees, "max_leaf_nodes": leaves, "learning_rate": 0.05, "l2_regularization": 1.0}
    for trees in (60, 120, 240)
    for leaves in (4, 8, 16)
]


def run(quick: bool = False) -> list[Record]:
    folder = real_data() / "quality"
    if not (folder / "metadata.csv").is_file():
        raise DataError(f"{folder}: no graded photographs; name the folder that holds quality/ with HAI_TEST_DATA")
    manifest = load(folder)
    features = np.stack([statistics(manifest, row) for row in range(len(manifest))])
    assert manifest.score is not None
    split = {name: manifest.indices(name) for name in ("train", "val", "test")}
    best, chosen = -1.0, _SETTINGS[0]
    for settings in _SETTINGS[:: 4 if quick else 1]:
        score = fitted(features, manifest.score, split["train"], settings, 3)[split["val"]]
        accuracy = point_metrics(score, manifest.label[split["val"]])["pair_accuracy"] or 0.0
        if accuracy > best:
            best, chosen = accuracy, settings
    print(f"chosen on val (pair accuracy {best:.3f}): {chosen}", file=sys.stderr)
    score = fitted(features, manifest.score, split["train"], chosen, 3 if quick else 10)
    return results(manifest, score, split["test"])


def load(folder: Path) -> Manifest:
    text = f"data: {{sources: [{{name: quality, path: '{folder}'}}], score_column: mos}}"
    return build_manifest(config_from_yaml_text(text, "benchmark").data, 42, task="ranker")


def results(manifest: Manifest, score: Floats, rows: NDArray[Any]) -> list[Record]:
    """Measure scores of all rows on some of them, overall and within each subset of the photographs."""
    found = []
    subset = np.array([path[:4] for path in manifest.path])
    for name in ("all", *sorted(set(subset[rows]))):
        own = rows if name == "all" else rows[subset[rows] == name]
        metrics = ranker_metrics(
            score[own],
            manifest.label[own],
            group=[manifest.group[i] for i in own],
            human=None if manifest.score is None else manifest.score[own],
        )
        found += [
            {"name": f"{name}: {metric}, n {len(own)}", **metrics[metric], "floor": None, "holds": True}
            for metric in ("pair_accuracy", "srcc", "srcc_score")
        ]
    return found


def fitted(features: Floats, target: Floats, rows: NDArray[Any], settings: Record, seeds: int) -> Floats:
    """Fit on some rows and score all: the mean over seeds, each on its own bootstrap draw."""
    total = np.zeros(len(features))
    for seed in range(seeds):
        drawn = rows[np.random.default_rng(seed).integers(0, len(rows), len(rows))]
        model = HistGradientBoostingRegressor(**settings, random_state=seed, min_samples_leaf=8)
        total += model.fit(features[drawn], target[drawn]).predict(features)
    return total / seeds


def statistics(manifest: Manifest, row: int) -> Floats:
    """Describe an image by 58 numbers."""
    with Image.open(io.BytesIO(manifest.read(row))) as picture:
        rgb = np.asarray(picture.convert("RGB"), dtype=np.float64)
        hsv = np.asarray(picture.convert("HSV"), dtype=np.float64)
    luminance = rgb @ np.array([0.299, 0.587, 0.114])
    numbers = [*scene(luminance), *scene(gaussian_filter(luminance, 0.8)[::2, ::2])]
    for channel in (*np.moveaxis(hsv, 2, 0), *np.moveaxis(rgb, 2, 0)):
        numbers += [channel.mean(), channel.std()]
    first, second = rgb[..., 0] - rgb[..., 1], (rgb[..., 0] + rgb[..., 1]) / 2 - rgb[..., 2]
    numbers.append(np.hypot(first.std(), second.std()) + 0.3 * np.hypot(first.mean(), second.mean()))
    counts = np.bincount(luminance.astype(np.int64).ravel(), minlength=256) / luminance.size
    numbers.append(-(counts[counts > 0] * np.log2(counts[counts > 0])).sum())
    numbers += np.percentile(luminance, [1, 5, 25, 50, 75, 95, 99]).tolist()
    numbers += [laplace(gaussian_filter(luminance, s)).std() for s in (0.0, 1.0, 2.0)]
    return np.array(numbers)


def scene(luminance: Floats) -> list[float]:
    """Moments of locally normalised luminance and of the products of its neighbours in four directions."""
    mean = gaussian_filter(luminance, 7 / 6)
    deviation = np.sqrt(np.maximum(gaussian_filter(luminance**2, 7 / 6) - mean**2, 0))
    normal = (luminance - mean) / (deviation + 1.0)
    numbers = [deviation.mean(), deviation.std(), *moments(normal)]
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        numbers += moments(normal * np.roll(normal, (down, right), (0, 1)))
    return numbers


def moments(values: Floats) -> list[float]:
    """Return mean, deviation and the ratio that tells a normal from a heavy-tailed distribution."""
    deviation = float(values.std())
    return [float(values.mean()), deviation, float(np.abs(values).mean()) / (deviation + 1e-9)]
