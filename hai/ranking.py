"""A trained ranker at work: score images, compare two, put many in order."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hai.checkpoint.records import save_text
from hai.console import plain
from hai.data.images import AnyImage, decode_image, each_image, fit_image, refuse_unusable, rgb_pixels
from hai.errors import ConfigError, DataError
from hai.predict import check_output, find_files, load_picture, num_threads
from hai.progress import progress_bar
from hai.results import csv_text
from hai.score_scale import Scale

if TYPE_CHECKING:
    import torch

    from hai.trained import Layout, Trained

__all__ = ["BATCH_SIZE", "Comparison", "Ranker", "Scored", "load_ranker", "run_comparison", "run_ranking"]

BATCH_SIZE: Final = 32
"""Images that are scored at once."""


class Scored(NamedTuple):
    """What a ranker says of one image.

    Args:
        score: higher is better.
        spread: standard deviation of the heads' scores; 0 with one head.
        elo: points on an Elo-like scale, 1500 for the mean of the validation split.
        tier: name of the tier; "" where the ranker was trained on comparisons.
        error: why the image cannot be used, the other fields are then nothing; "" if it can.
    """

    score: float
    spread: float
    elo: float
    tier: str
    error: str = ""


@dataclass(frozen=True)
class Comparison:
    """What a ranker says of two images.

    Args:
        winner: left, right, or tie where the scores are equal.
        probability_left: that the left image is the better one.
        confidence: probability of the winner, 0.5-1.
        difference: score of left minus score of right.
        score_left, score_right: higher is better.
        tier_left, tier_right: names; "" without tiers.
    """

    winner: str
    probability_left: float
    confidence: float
    difference: float
    score_left: float
    score_right: float
    tier_left: str
    tier_right: str


class Ranker:
    """A model with the weights of a checkpoint: `ranker([...])` is the score of each image, higher is better.

    Scores are computed in full precision; on a CPU image by image, so that a score does not depend on its company.

    Args:
        trained: the model.

    Raises:
        ConfigError: it is no ranker.
    """

    def __init__(self, trained: Trained) -> None:
        from hai.tasks.ranker import RankerTask

        if trained.config.task != "ranker":
            raise ConfigError(f"{trained.run}: is a {trained.config.task}, not a ranker; use hai predict")
        self.trained = trained
        self.scale = Scale.from_record(trained.checkpoint.meta.get("fitted", {}))
        self.tiers: tuple[str, ...] = tuple(trained.config.data.tiers) if self.scale.thresholds else ()
        self._task = RankerTask(trained.config)

    def __call__(self, images: AnyImage | Iterable[AnyImage]) -> NDArray[np.float64]:
        """Return the score of each image [N].

        Raises:
            DataError: some cannot be used, a line each.
        """
        images = list(each_image(images))
        found = list(self.score(images))
        refuse_unusable(images, (one.error for one in found))
        return np.array([one.score for one in found], dtype=np.float64)

    def score(
        self, images: AnyImage | Iterable[AnyImage], *, progress: Callable[[int], None] | None = None
    ) -> Iterator[Scored]:
        """Score images in order, reading ahead; an image that cannot be used has an `error`.

        Args:
            images: files, contents of files, pixels or Pillow's images; one or many.
            progress: called with the number of images done.
        """
        from hai.data.loader import RingLoader

        layout, device = self.trained.layout, self.trained.device
        jobs = _jobs(each_image(images), layout)
        done = 0
        with closing(RingLoader(jobs, size=layout.size, device=device, num_threads=num_threads())) as loader:
            for job, pixels in loader:
                yield from self._scored(pixels, job.errors)
                done += len(job)
                if progress is not None:
                    progress(done)

    def _scored(self, pixels: torch.Tensor, errors: Sequence[str]) -> Iterator[Scored]:
        import torch

        from hai.data.augment import normalise

        index = torch.arange(len(pixels), device=pixels.device)
        with torch.inference_mode():
            batch = {"image": normalise(pixels), "index": index, "label": torch.zeros_like(index)}
            found = self._task.predict(self.trained.model, batch)
        scores, spreads = (found[name].double().cpu().numpy() for name in ("score", "spread"))
        for score, spread, error in zip(scores.tolist(), spreads.tolist(), errors, strict=True):
            if error:
                yield Scored(float("nan"), float("nan"), float("nan"), "", error)
            else:
                tier = self.tiers[int(self.scale.tier_of(score))] if self.tiers else ""
                yield Scored(score, spread, float(self.scale.elo(score)), tier)

    def compare(self, left: AnyImage, right: AnyImage) -> Comparison:
        """Compare two images.

        Raises:
            DataError: one of them cannot be used.
        """
        sides = list(self.score([left, right]))
        refuse_unusable([left, right], (side.error for side in sides))
        return self.comparison(*sides)

    def comparison(self, left: Scored, right: Scored) -> Comparison:
        """Compare two scored images."""
        difference = left.score - right.score
        probability = float(self.scale.probability(left.score, right.score))
        return Comparison(
            winner="left" if difference > 0 else "right" if difference < 0 else "tie",
            probability_left=probability,
            confidence=max(probability, 1.0 - probability),
            difference=difference,
            score_left=left.score,
            score_right=right.score,
            tier_left=left.tier,
            tier_right=right.tier,
        )

    def rank(self, images: str | Path | Iterable[str | Path]) -> list[tuple[str, Scored]]:
        """Score image files and put them in order, the best first; unusable ones come last."""
        names = list(map(str, each_image(images)))
        return sorted(zip(names, self.score(names), strict=True), key=_by_score)


def load_ranker(reference: str | Path, device: torch.device | str | None = None) -> Ranker:
    """Load a ranker from a run (its best checkpoint), a checkpoint, or a URL of either.

    Args:
        reference: the run folder, the checkpoint folder, or a URL.
        device: where to compute; None: a GPU if there is one.

    Raises:
        CheckpointError: there is no whole checkpoint, or it is no ranker's.
        ConfigError: its backbone cannot be had here.
    """
    import torch

    from hai.trained import best_device, load_trained

    return Ranker(load_trained(str(reference), best_device() if device is None else torch.device(device)))


class _Job:
    """A batch of images for the loader; what cannot be used becomes an error and a black picture."""

    def __init__(self, images: Sequence[AnyImage], layout: Layout) -> None:
        self._images, self._layout = images, layout
        self.errors = [""] * len(images)

    def __len__(self) -> int:
        return len(self._images)

    def load(self, start: int, stop: int, out: NDArray[np.uint8]) -> None:
        """Decode and fit images start to stop into out [stop - start, S, S, 3]."""
        for place in range(start, stop):
            try:
                out[place - start] = _pixels(self._images[place], self._layout)
            except DataError as error:
                self.errors[place] = str(error)
                out[place - start] = 0


def _pixels(image: AnyImage, layout: Layout) -> NDArray[np.uint8]:
    if isinstance(image, str | Path):
        return load_picture(Path(image), layout)
    pixels = decode_image(image, layout.max_megapixels) if isinstance(image, bytes) else rgb_pixels(image)
    return fit_image(pixels, layout.size, layout.geometry)


def _jobs(images: Iterable[AnyImage], layout: Layout) -> Iterator[_Job]:
    batch: list[AnyImage] = []
    for image in images:
        batch.append(image)
        if len(batch) == BATCH_SIZE:
            yield _Job(batch, layout)
            batch = []
    if batch:
        yield _Job(batch, layout)


def _by_score(named: tuple[str, Scored]) -> tuple[bool, float, str]:
    name, scored = named
    return bool(scored.error), 0.0 if scored.error else -scored.score, name


# -- the verbs ---------------------------------------------------------------------------------------------------------


def run_ranking(checkpoint: str, folder: str, output: str) -> int:
    """Write a table of all images of a folder, the best first.

    Args:
        checkpoint: REF.
        folder: searched deeply; also an image or an archive.
        output: the CSV `filename,score,tier,elo,spread,error`.

    Returns:
        Exit status 0; unusable files are listed at the end of the table.

    Raises:
        HaiError: for wrong arguments, inputs or checkpoints.
    """
    target = Path(output)
    faults = check_output(target)
    if not Path(folder).exists():
        faults.append(f"--input = {folder}; no such file or folder")
    if faults:
        raise ConfigError("\n".join(faults))
    with ExitStack() as stack:
        files = list(find_files(folder, stack))
        if not files:
            raise DataError(f"--input = {folder}; no image in it; a folder is searched deeply")
        ranker = load_ranker(checkpoint)
        show = stack.enter_context(progress_bar("scoring", "images"))
        scores = ranker.score((path for _, path in files), progress=lambda done: show(done, len(files)))
        ranked = sorted(((name, scored) for (name, _), scored in zip(files, scores, strict=True)), key=_by_score)
    unusable = [(name, scored.error) for name, scored in ranked if scored.error]
    if len(unusable) == len(ranked):
        raise DataError("\n".join(f"{name}: {error}" for name, error in unusable[:10]) + f"\n{folder}: no usable image")
    columns = ["filename", "score", "tier", "elo", "spread", "error"]
    save_text(target, csv_text(columns, [_row(name, scored) for name, scored in ranked]))
    print(f"{len(ranked) - len(unusable)} images, the best {plain(ranked[0][0])} -> {target}")
    for name, error in unusable[:10]:
        print(f"unusable: {name}: {error}", file=sys.stderr)
    if len(unusable) > 10:
        print(f"unusable: and {len(unusable) - 10} more, see the table", file=sys.stderr)
    return 0


def _row(name: str, scored: Scored) -> list[Any]:
    if scored.error:
        return [name, "", "", "", "", scored.error]
    return [name, f"{scored.score:.9g}", scored.tier, f"{scored.elo:.1f}", f"{scored.spread:.7g}", ""]


def run_comparison(
    checkpoint: str,
    images: Sequence[str] = (),
    *,
    as_json: bool = False,
    pairs: str | None = None,
    output: str | None = None,
    image_dir: str | None = None,
) -> int:
    """Compare two images, or every pair of a CSV `left,right`.

    Args:
        checkpoint: REF.
        images: left and right, without `pairs`.
        as_json: print a JSON object instead of a sentence.
        pairs: CSV with columns left and right, paths from `image_dir`.
        output: the CSV to write for `pairs`.
        image_dir: folder that the CSV's paths start from; default: `images/` beside the CSV, or its own folder.

    Returns:
        Exit status 0; in a CSV pairs with unusable images have an error.

    Raises:
        HaiError: for wrong arguments, inputs or checkpoints.
    """
    faults = []
    if pairs is None and len(images) != 2:
        faults.append(f"compare: {len(images)} images; give LEFT and RIGHT, or --pairs FILE.csv --output FILE.csv")
    if pairs is not None and (images or output is None):
        faults.append("compare: --pairs FILE.csv goes with --output FILE.csv and without LEFT and RIGHT")
    faults += [f"compare: {name}; no such file" for name in images if not Path(name).is_file()]
    if output is not None:
        faults += check_output(Path(output))
    if faults:
        raise ConfigError("\n".join(faults))
    if pairs is not None and output is not None:
        return _compare_all(checkpoint, Path(pairs), Path(output), image_dir)
    left, right = images
    found = load_ranker(checkpoint).compare(left, right)
    if as_json:
        record = {"left": left, "right": right, **asdict(found)}
        print(json.dumps(record, ensure_ascii=not (left + right).isprintable()))
    else:
        print(_sentence(plain(left), plain(right), found))
    return 0


def _sentence(left: str, right: str, found: Comparison) -> str:
    if found.winner == "right":
        left, right = right, left
    better, worse = (found.score_left, found.score_right)[:: 1 if found.winner != "right" else -1]
    tiers = (found.tier_left, found.tier_right)[:: 1 if found.winner != "right" else -1]
    of_tiers = f", tiers {tiers[0]} and {tiers[1]}" if all(tiers) else ""
    verb = "ties with" if found.winner == "tie" else "beats"
    return (
        f"{left} {verb} {right} with probability {found.confidence:.2f} (scores {better:.3f} and {worse:.3f}{of_tiers})"
    )


def _compare_all(checkpoint: str, table: Path, target: Path, image_dir: str | None) -> int:
    named = _pairs_of(table)
    folder = Path(image_dir) if image_dir else table.parent / "images"
    if image_dir is None and not folder.is_dir():
        folder = table.parent
    ranker = load_ranker(checkpoint)
    distinct = list(dict.fromkeys(name for pair in named for name in pair))
    with progress_bar("scoring", "images") as show:
        found = ranker.score((folder / name for name in distinct), progress=lambda done: show(done, len(distinct)))
        scored = dict(zip(distinct, found, strict=True))
    rows, num_bad = [], 0
    for left, right in named:
        errors = [f"{name}: {scored[name].error}" for name in dict.fromkeys((left, right)) if scored[name].error]
        if errors:
            num_bad += 1
            rows.append([left, right, "", "", "", "", "", "; ".join(errors)])
            continue
        one = ranker.comparison(scored[left], scored[right])
        numbers = [f"{value:.9g}" for value in (one.score_left, one.score_right)]
        rows.append([left, right, *numbers, one.winner, f"{one.probability_left:.7g}", f"{one.difference:.9g}", ""])
    columns = ["left", "right", "score_left", "score_right", "winner", "probability_left", "difference", "error"]
    save_text(target, csv_text(columns, rows))
    print(f"{len(rows) - num_bad} comparisons{f', {num_bad} with unusable images' if num_bad else ''} -> {target}")
    return 0


def _pairs_of(table: Path) -> list[tuple[str, str]]:
    """Read the columns left and right of a CSV; raises DataError with every fault."""
    from hai.data.tables import read_table

    pairs, faults = [], list[str]()
    for line, row in read_table(table, ("left", "right"), 2, "left,right", faults):
        empty = [name for name in ("left", "right") if not row[name]]
        faults += [f"{table}:{line}: {name} is empty" for name in empty]
        if not empty:
            pairs.append((row["left"], row["right"]))
    if faults:
        raise DataError("\n".join(faults))
    if not pairs:
        raise DataError(f"{table}: there are no rows below the header")
    return pairs
