"""A trained detector at work in Python: images, files and pixels to probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hai.data.images import AnyImage, each_image, refuse_unusable, rgb_pixels
from hai.errors import ConfigError, DataError
from hai.predict.files import Row, is_ready_crop
from hai.predict.run import option_faults, probability_at, view_for
from hai.types import LABELS

if TYPE_CHECKING:
    import torch

    from hai.trained import Trained

__all__ = ["Detector", "Prediction", "load_detector"]


class Prediction(NamedTuple):
    """What a detector says of one image or video.

    Args:
        probability_fake: 0-1; NaN where there is an error.
        prediction: real or fake, at the threshold stored with the checkpoint; "" where there is an error.
        num_frames: pictures that were scored.
        num_faces: of them cut out around a face.
        error: why the file cannot be used; "" if it can.
    """

    probability_fake: float
    prediction: str
    num_frames: int
    num_faces: int
    error: str = ""


class Detector:
    """A model with the weights of a checkpoint: `detector([...])` is the probability of fake of each image.

    Scores are those of `hai predict`. Files are read in threads of this process, which a video that crashes the decoder
    takes down with it; `hai predict` lists such a video.

    Args:
        trained: the model.
        detector_model: the model file of mediapipe; None: where it lay when the training images were cut out.

    Raises:
        ConfigError: it is no detector.
    """

    def __init__(self, trained: Trained, detector_model: str | Path | None = None) -> None:
        if trained.config.task != "detector":
            raise ConfigError(f"{trained.run}: is a {trained.config.task}, not a detector; use hai rank or compare")
        self.trained = trained
        self._detector_model = None if detector_model is None else str(detector_model)

    @property
    def threshold(self) -> float:
        """Return the probability from which an image is called fake."""
        return self.trained.threshold

    def __call__(self, images: AnyImage | Iterable[AnyImage], **options: str | int) -> NDArray[np.float64]:
        """Return the probability of fake of each image or video [N]; options are those of `predict`.

        Raises:
            DataError: some cannot be used, a line each.
        """
        images = list(each_image(images))
        found = self.predict(images, **options)  # type: ignore[arg-type]
        refuse_unusable(images, (one.error for one in found))
        return np.array([one.probability_fake for one in found], dtype=np.float64)

    def predict(
        self,
        images: AnyImage | Iterable[AnyImage],
        *,
        frames: int = 16,
        faces: Literal["auto", "always", "never"] = "auto",
        aggregate: Literal["mean", "median", "topk", "max"] = "mean",
    ) -> list[Prediction]:
        """Score images and videos in order; one that cannot be used has an `error`.

        Args:
            images: image and video files, contents of image files, pixels or Pillow's images; one or many.
            frames: of each video, evenly spread.
            faces: `auto` cuts faces out where the training images were cut so.
            aggregate: of the logits of a video's frames.

        Raises:
            ConfigError: an option is wrong, or faces are to be cut out by a detector that cannot be had here.
        """
        from hai.predict.score import score_rows

        faults = option_faults(frames, faces, aggregate)
        if faults:
            raise ConfigError("\n".join(faults))
        view = view_for(self.trained, faces, self._detector_model)
        rows = [_row(image, may_be_ready=faces == "auto") for image in each_image(images)]
        score_rows(
            rows, [self.trained], view, frames=frames, how=aggregate, devices=[self.trained.device], in_processes=False
        )
        return [self._prediction(row) for row in rows]

    def _prediction(self, row: Row) -> Prediction:
        error = row.error or ("" if math.isfinite(row.logits[0]) else "the model's score is not a number")
        if error:
            return Prediction(math.nan, "", 0, 0, error)
        probability = probability_at(row.logits[0])
        return Prediction(probability, LABELS[int(probability >= self.threshold)], row.num_frames, row.num_faces)


def load_detector(reference: str | Path, device: torch.device | str | None = None) -> Detector:
    """Load a detector from a run (its best checkpoint), a checkpoint, or a URL of either.

    Raises:
        CheckpointError: there is no whole checkpoint.
        ConfigError: it is no detector's.
    """
    import torch

    from hai.trained import best_device, load_trained

    return Detector(load_trained(str(reference), best_device() if device is None else torch.device(device)))


def _row(image: AnyImage, *, may_be_ready: bool) -> Row:
    if isinstance(image, str | Path):
        path = Path(image)
        return Row(str(path), path, may_be_ready and is_ready_crop(path))
    try:
        return Row("", image if isinstance(image, bytes) else rgb_pixels(image))
    except DataError as error:
        return Row("", None, error=str(error))
