"""A trained network, taken from a checkpoint and ready to score images."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hai.calibration import Calibration
from hai.checkpoint.find import load_reference
from hai.checkpoint.format import Checkpoint
from hai.checkpoint.remote import is_bucket, local_folder
from hai.config.load import config_from_yaml_text
from hai.config.schema import RunConfig
from hai.data.augment import normalise
from hai.errors import CheckpointError
from hai.faces.settings import CropSettings
from hai.models import build_model
from hai.models.encoder import rounded_image_size
from hai.models.scorer import build_scorer
from hai.types import Record

__all__ = ["Layout", "Trained", "best_device", "crop_settings_of", "find_trained", "load_trained", "use_full_precision"]


class Layout(NamedTuple):
    """How a model wants its images; see `hai.data.images.fit_image`."""

    size: int
    geometry: Literal["resize", "pad", "crop"]
    max_megapixels: float


@dataclass(frozen=True)
class Trained:
    """A model with the weights of a checkpoint, in evaluation mode on its device.

    Args:
        config: of the run that trained it, with the image size that the network takes.
        checkpoint: what was loaded, without its tensors.
        run: folder or URL of the run that the checkpoint belongs to; of one that holds its run.yaml, its own.
        threshold: on P(fake), chosen in training.
        temperature: divides logits.
    """

    model: nn.Module
    device: torch.device
    config: RunConfig
    checkpoint: Checkpoint
    run: str
    threshold: float
    temperature: float

    def __post_init__(self) -> None:
        """Ask CUDA for full precision."""
        if self.device.type == "cuda":
            use_full_precision()

    @property
    def layout(self) -> Layout:
        """Say how the model wants its images."""
        data = self.config.data
        return Layout(data.image_size, data.geometry, data.max_megapixels)

    @property
    def crop_settings(self) -> CropSettings | None:
        """Say how the training images were cut out by `hai preprocess`; None: they were not.

        Raises:
            CheckpointError: another version did it, whose settings are not known here.
        """
        return crop_settings_of(self.checkpoint)

    @property
    def calibration(self) -> Calibration:
        """Say how a detector's logits are read."""
        return Calibration.from_record(self.checkpoint.meta.get("fitted", {}))

    def logits(self, image: Tensor, *, flip: bool = False) -> NDArray[np.float64]:
        """Score images in full precision, so that a score does not depend on its batch.

        Args:
            image: uint8 [B, 3, S, S] on the model's device.
            flip: look at the mirrored images too and average the logits, at twice the cost.

        Returns:
            Calibrated logit of fake against real [B].
        """
        with torch.inference_mode():
            pixels = normalise(image)
            output: Tensor = self.model(pixels)
            if flip:
                output = (output + self.model(pixels.flip(-1))) / 2
        logit = (output[:, 1] - output[:, 0]).float().cpu().numpy()
        return logit.astype(np.float64) / self.temperature


def crop_settings_of(checkpoint: Checkpoint) -> CropSettings | None:
    """Say how the training images of a checkpoint were cut out, see `Trained.crop_settings`."""
    record = checkpoint.meta.get("crop_settings")
    if record is None:
        return None
    try:
        return CropSettings(**record)
    except TypeError as error:
        raise CheckpointError(
            f"checkpoint: {checkpoint.path}: its faces were cut by settings that this version does not have ({error}); "
            "cut the faces out with that version and use --faces never"
        ) from None


def best_device() -> torch.device:
    """Choose where to compute: a CUDA GPU, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def use_full_precision() -> None:
    """Tell CUDA to compute in full precision; with TF32 a score depends on its batch."""
    if hasattr(torch.backends.cudnn, "conv"):
        torch.backends.cudnn.conv.fp32_precision = "ieee"
        torch.backends.cuda.matmul.fp32_precision = "ieee"
    else:  # torch before 2.9, which packages for contests also run on
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


def find_trained(reference: str) -> tuple[Checkpoint, Path]:
    """Find the checkpoint that a reference means, and its run.yaml; names on stderr what was passed over for it.

    Raises:
        CheckpointError: there is no whole checkpoint, or no run.yaml.
        StorageError: the storage does not answer.
    """

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    checkpoint, config_file, refusals = load_reference(reference, report=say)
    for refusal in refusals:
        say(f"refused checkpoint {refusal.name}: {refusal.reason}; using {checkpoint.path.name}")
    if config_file is None:
        raise CheckpointError(
            f"checkpoint: {reference}: has no run.yaml, which says how to build the model; give the run folder, or put "
            "its run.yaml into the checkpoint folder"
        )
    return checkpoint, config_file


def load_trained(reference: str, device: torch.device, overrides: Sequence[str] = ()) -> Trained:
    """Rebuild the model of a checkpoint; published weights that it holds are not fetched again.

    Args:
        reference: REF: a run folder (its best), a checkpoint folder, or a URL of either.
        device: where the model goes.
        overrides: `key=value` over the run's config.

    Raises:
        CheckpointError: there is no whole checkpoint, or it does not fit its config.
        ConfigError: an override is wrong.
        StorageError: the storage does not answer.
    """
    checkpoint, config_file = find_trained(reference)
    config = config_from_yaml_text(config_file.read_text(encoding="utf-8"), str(config_file), overrides)
    architecture = checkpoint.meta.get("architecture")
    if config.task == "ranker":
        size = rounded_image_size(config.model, config.data.image_size, (architecture or {}).get("hf"))
        config = config.model_copy(update={"data": config.data.model_copy(update={"image_size": size})})
    model = _network(config, architecture)
    _fill(model, checkpoint)
    fitted = Calibration.from_record(checkpoint.meta.get("fitted", {}))
    return Trained(
        model=model.to(device).eval(),
        device=device,
        config=config,
        checkpoint=replace(checkpoint, model={}, state={}),
        run=_run_of(reference, checkpoint.path, config_file),
        threshold=fitted.threshold,
        temperature=fitted.temperature,
    )


def _network(config: RunConfig, architecture: Record | None) -> nn.Module:
    """Build the network that the checkpoint's weights belong to."""
    if config.task == "ranker":
        return build_scorer(config, config.data.image_size, architecture=architecture)
    unfetched = config.model.model_copy(update={"pretrained": False})
    return build_model(unfetched, config.data.image_size, config.seed, architecture=architecture)


def _fill(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put the served weights into the model, all of them or none."""
    own, found = model.state_dict(), checkpoint.model
    wrong = sorted(
        name
        for name in own.keys() | found.keys()
        if name not in own or name not in found or own[name].shape != found[name].shape
    )
    if wrong:
        raise CheckpointError(
            f"checkpoint: {checkpoint.path}: {len(wrong)} tensors do not fit the model of its run.yaml, first "
            f"{wrong[0]!r}; run.yaml or the model's code has changed since"
        )
    model.load_state_dict(found)


def _run_of(reference: str, checkpoint: Path, config_file: Path) -> str:
    """Name the run of a reference: the reference itself, or of a checkpoint without a run.yaml what it lies in."""
    run = reference.rstrip("/") if is_bucket(reference) else str(local_folder(reference))
    if Path(run).name != checkpoint.name or config_file.parent == checkpoint:
        return run
    return re.sub(r"/checkpoints$", "", run.rpartition("/")[0])
