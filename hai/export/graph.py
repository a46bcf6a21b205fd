"""A model as one ONNX graph from pixels to probabilities, and the proof that it computes what torch does."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hai.errors import CheckpointError, ConfigError
from hai.export.facts import model_facts
from hai.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from hai.models.scorer import Scorer, scores_of

if TYPE_CHECKING:
    from hai.config.schema import PairsConfig
    from hai.trained import Trained

__all__ = ["TOLERANCE", "Exported", "check_images", "check_packages", "export_onnx"]

TOLERANCE: Final = 1e-4
"""Largest difference from torch, of probabilities, and of logits and scores relative to 1 + their size."""

_LARGEST_FILE: Final = 1_800_000_000  # a protobuf message ends at 2 GiB; larger weights lie in a file beside it
_NUM_CHECKED: Final = 4


class Exported(NamedTuple):
    """What was written.

    Args:
        size: of all files, bytes.
        difference: the largest from torch, as `TOLERANCE` measures it.
        num_images: it was measured on.
        outputs: names of the graph's outputs.
    """

    size: int
    difference: float
    num_images: int
    outputs: tuple[str, ...]


class _Pixels(nn.Module):
    """Image uint8 [N, S, S, 3], RGB -> float32 [N, 3, S, S], normalised as in training."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1))
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return the network's input."""
        return (image.permute(0, 3, 1, 2).float() - self.mean) / self.std


class _Detector(nn.Module):
    """Image -> P(fake) [N] and calibrated logit [N]."""

    outputs = ("probability_fake", "logit")
    compared = "logit"

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self.pixels, self.model, self.temperature = _Pixels(), model, temperature

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.model(self.pixels(image))
        logit = (logits[:, 1] - logits[:, 0]) / self.temperature
        return torch.sigmoid(logit), logit


class _Ranker(nn.Module):
    """Image -> score [N], higher is better, and the heads' standard deviation [N]."""

    outputs = ("score", "spread")
    compared = "score"

    def __init__(self, model: Scorer, pairs: PairsConfig) -> None:
        super().__init__()
        self.pixels, self.heads, self.pairs = _Pixels(), model.heads, pairs
        self.encoder = model.encoder if model.encoder is not None else model.frozen_encoder(torch.device("cpu"))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = self.encoder(self.pixels(image)).float()
        scores = scores_of(torch.stack([head(features) for head in self.heads], dim=1), self.pairs)
        return scores.mean(dim=1), scores.std(dim=1, correction=0)


def check_packages() -> None:
    """Refuse when the packages of the extra `export` are missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"--format = onnx; needs {error.name}; pip install 'hai[export]'") from error


def export_onnx(trained: Trained, target: Path) -> Exported:
    """Write the graph once onnxruntime has been seen to agree with torch on it.

    Its input is `image`, uint8 [N, S, S, 3], RGB; the metadata entry `hai` holds `model_facts` as JSON.

    Args:
        trained: on the CPU.
        target: `.onnx` file; weights above 1.8 GB lie beside it, in `NAME.data`.

    Raises:
        ConfigError: the network has an operation that ONNX lacks.
        CheckpointError: the results differ; nothing is written.
    """
    model = trained.model
    graph = (
        _Ranker(model, trained.config.pairs) if isinstance(model, Scorer) else _Detector(model, trained.temperature)
    ).eval()
    images = check_images(trained.config.data.image_size)
    program = _program(graph, images[:2], trained.config.model.name)
    for part in (program.model.graph, *program.model.functions.values()):
        for node in part.all_nodes():
            node.metadata_props.clear()  # the exporter's stack traces, with paths of this machine
    program.model.metadata_props["hai"] = json.dumps(model_facts(trained))
    size = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".hai-") as room:
        written = Path(room) / target.name
        program.save(str(written), external_data=size > _LARGEST_FILE)
        del program
        difference = _difference(trained, written, images, graph.compared)
        files = sorted(Path(room).iterdir(), key=lambda path: path == written)  # the graph last: it names the other
        total = sum(path.stat().st_size for path in files)
        for path in files:
            os.replace(path, target.parent / path.name)
    return Exported(total, difference, len(images), graph.outputs)


def _program(graph: nn.Module, image: Tensor, name: str) -> Any:
    """Translate the graph for any number of images of one size."""
    with _plain_attention(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own remarks on its way; what matters is an exception
        try:
            return torch.onnx.export(
                graph,
                (image,),
                input_names=["image"],
                output_names=list(graph.outputs),  # type: ignore[arg-type]
                dynamic_shapes={"image": {0: torch.export.Dim("N", min=1)}},
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().split("\n")[0]
            raise ConfigError(
                f"--format = onnx; model.name = {name}; torch cannot translate it: {reason}; use safetensors"
            ) from error


@contextmanager
def _plain_attention() -> Iterator[None]:
    """Have transformer layers computed by plain operations, not by the fused one that ONNX lacks."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def check_images(size: int) -> Tensor:
    """Draw images that the two runtimes are compared on: uint8 [4, S, S, 3], colour fields with grain, always the same.

    Not black or noise alone: the spectrum of an even image is rounding error, which no two runtimes share.
    """
    generator = np.random.default_rng(0)
    coarse = generator.uniform(40, 215, (_NUM_CHECKED, 3, 6, 6)).astype(np.float32)
    field = torch.nn.functional.interpolate(torch.from_numpy(coarse), (size, size), mode="bicubic")
    grain = generator.normal(0, 1, (_NUM_CHECKED, 3, size, size)) * np.array([2, 6, 12, 25])[:, None, None, None]
    pixels = (field.numpy() + grain).clip(0, 255).astype(np.uint8)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)))


def _difference(trained: Trained, path: Path, images: Tensor, output: str) -> float:
    """Compare the file with the model as it is served; raises CheckpointError where they differ."""
    expected = _served(trained, images)
    session = _session(path)
    found: NDArray[np.float64] = session.run([output], {"image": images.numpy()})[0].astype(np.float64)
    (alone,) = session.run([output], {"image": images[:1].numpy()})
    errors = np.abs(np.append(found, alone[0]) - np.append(expected, expected[0]))
    difference = float((errors / (1 + np.abs(np.append(expected, expected[0])))).max())
    if not difference <= TOLERANCE:
        raise CheckpointError(
            f"--format = onnx; {output} of {trained.config.model.name} differs from torch by {difference:.1e}; at most "
            f"{TOLERANCE:.0e} is accepted, nothing was written; use safetensors"
        )
    return difference


def _served(trained: Trained, images: Tensor) -> NDArray[np.float64]:
    """Score as `hai predict` and `hai rank` do: calibrated logits, or scores [N]."""
    pixels = images.permute(0, 3, 1, 2)
    if trained.config.task == "detector":
        return trained.logits(pixels)
    from hai.data.augment import normalise
    from hai.tasks.ranker import RankerTask

    index = torch.arange(len(pixels))
    with torch.inference_mode():
        batch = {"image": normalise(pixels), "index": index, "label": torch.zeros_like(index)}
        found = RankerTask(trained.config).predict(trained.model, batch)["score"]
    return found.double().numpy()


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
