"""transformers' networks as detectors (`hf:REPO`, a repository of the Hugging Face Hub or a local folder)."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from hai.config.schema import ModelConfig
from hai.errors import ConfigError
from hai.models.backbone import IMAGENET_MEAN, IMAGENET_STD, Renormalize, check_patch, freeze_unused
from hai.models.weights import copy_tensors, hub_folder, raise_mismatches, read_tensors

__all__ = [
    "HfDescription",
    "HfDetector",
    "build_hf",
    "build_hf_encoder",
    "describe_hf",
    "is_local",
    "load_hf_weights",
    "vision_config",
    "without_folders",
]


class HfDetector(nn.Module):
    """A transformers network with a classifier of two logits; image [B, 3, S, S] -> logits [B, 2].

    A network whose library has no classifier for it gets a linear layer on its pooled output, or on the mean of its
    tokens where it does not pool.

    Args:
        network: built by transformers, its own classifier, if any, of two logits.
        mean: of the images that the network takes, RGB, full range 1.
        std: their deviation.
        image_size: S, pixels.
        dropout: before the classifier; None: the network's own.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        image_size: int,
        dropout: float | None,
    ) -> None:
        super().__init__()
        self.renormalize = Renormalize(mean, std)
        self.network = network
        self.unused: set[str] = set()
        self._options = {"interpolate_pos_encoding": True} if _must_interpolate(network, image_size) else {}
        self.classifier: nn.Module = nn.Identity()
        own = getattr(network, "classifier", None)
        if own is None:
            with torch.no_grad():
                width = self._features(torch.zeros(1, 3, image_size, image_size)).shape[1]
            self.classifier = nn.Sequential(nn.Dropout(dropout or 0.0), nn.Linear(width, 2))
        elif dropout is not None:
            network.classifier = nn.Sequential(nn.Dropout(dropout), own)

    @property
    def architecture(self) -> dict[str, Any]:
        """The library's description of the network, with which `build_model` rebuilds it without its repository."""
        return cast("dict[str, Any]", without_folders(cast(Any, self.network).config.to_dict()))

    def _features(self, image: Tensor) -> Tensor:
        output = self.network(pixel_values=self.renormalize(image), **self._options)
        if getattr(output, "logits", None) is not None:
            return cast(Tensor, output.logits)
        if getattr(output, "pooler_output", None) is not None:
            return cast(Tensor, output.pooler_output.flatten(1))
        hidden = cast(Tensor, output.last_hidden_state)
        return hidden.mean(dim=1) if hidden.ndim == 3 else hidden.mean(dim=(2, 3))

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [B, 2] of images [B, 3, S, S]."""
        return cast(Tensor, self.classifier(self._features(image)))

    def backbone_names(self) -> set[str]:
        """Name the parameters of everything but the classifier, as far as they are used."""
        heads = ("classifier.", "network.classifier.")
        return {name for name, _ in self.named_parameters() if not name.startswith(heads)} - self.unused

    def load_backbone(self, tensors: dict[str, Tensor], where: str) -> None:
        """Fill the network, except its classifier, from the tensors of a Hugging Face checkpoint.

        The library itself reads them, since it knows the names that older checkpoints use.

        Raises:
            ConfigError: names the tensors that are missing or of another shape.
        """
        load_hf_weights(self.network, tensors, where)


def load_hf_weights(network: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Fill a transformers network, except its classifier, from the tensors of a Hugging Face checkpoint.

    Raises:
        ConfigError: names the tensors that are missing or of another shape.
    """
    with _quiet():
        loaded, found = cast(Any, type(network)).from_pretrained(
            None,
            config=cast(Any, network).config,
            state_dict=dict(tensors),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    problems = [f"{name}: missing" for name in found["missing_keys"]] + [
        f"{name}: {list(given)}, the model has {list(own)}" for name, given, own in found["mismatched_keys"]
    ]
    raise_mismatches([line for line in problems if not line.startswith("classifier.")], where)
    copy_tensors(network, loaded.state_dict(), where, ignored=("classifier.",))


def without_folders(record: Any) -> Any:
    """Copy a description, as JSON, without the folders of this machine that transformers notes in it."""
    if isinstance(record, dict):
        return {name: without_folders(value) for name, value in record.items() if name != "_name_or_path"}
    return [without_folders(value) for value in record] if isinstance(record, list | tuple) else record


def is_local(repo: str) -> bool:
    """Say whether `hf:REPO` means a folder, there or not, rather than a repository of the hub."""
    return Path(repo).is_dir() or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", repo)


class HfDescription(NamedTuple):
    """What a repository says of its network: the library's config, the images it takes, and where it lies."""

    config: Any
    mean: tuple[float, ...]
    std: tuple[float, ...]
    folder: Path | None


def describe_hf(
    repo: str, config: ModelConfig, *, weights: bool, architecture: dict[str, Any] | None = None
) -> HfDescription:
    """Read what a repository of the hub, or a local folder, says of its network.

    Args:
        repo: a repository of the Hugging Face Hub, or a local folder with its `config.json`.
        config: the model's section of the config.
        weights: its weights are needed too.
        architecture: description kept by a checkpoint; the repository is then left alone.

    Raises:
        ConfigError: it cannot be had, or is not understood.
    """
    from transformers import AutoConfig
    from transformers.image_processing_base import ImageProcessingMixin

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    with _quiet(), _library_errors(f"hf:{repo}"):
        if architecture is not None and not config.trust_remote_code:
            return HfDescription(AutoConfig.for_model(**architecture), mean, std, None)
        folder = Path(repo)
        if not folder.is_dir():
            folder = hub_folder(repo, weights=weights, config=True, code=config.trust_remote_code)
        description = AutoConfig.from_pretrained(str(folder), trust_remote_code=config.trust_remote_code)
        if (folder / "preprocessor_config.json").is_file():
            given, _ = ImageProcessingMixin.get_image_processor_dict(str(folder))
            mean, std = given.get("image_mean") or mean, given.get("image_std") or std
        return HfDescription(description, tuple(mean), tuple(std), folder)


def build_hf_encoder(
    name: str, description: HfDescription, config: ModelConfig, image_size: int
) -> tuple[nn.Module, dict[str, Any]]:
    """Build the image part of a described network with random weights.

    Returns:
        The network, and the options that its forward needs at this image size.
    """
    from transformers import AutoModel

    with _quiet(), _library_errors(name):
        vision = vision_config(description.config)
        if config.drop_path is not None:
            _set_drop_path(name, vision, config.drop_path)
        library: Any = AutoModel
        network = library.from_config(vision, dtype=torch.float32, trust_remote_code=config.trust_remote_code)
        if network.main_input_name != "pixel_values":
            raise ConfigError(
                f"model.name = {name}; a {type(network).__name__} takes {network.main_input_name}, not images"
            )
        if config.gradient_checkpointing:
            _enable_checkpointing(network)
    return network, ({"interpolate_pos_encoding": True} if _must_interpolate(network, image_size) else {})


def _set_drop_path(name: str, description: Any, rate: float) -> None:
    if not hasattr(description, "drop_path_rate"):
        raise ConfigError(f"model.drop_path = {rate}; {name} has no stochastic depth; set it to null")
    description.drop_path_rate = rate


def build_hf(repo: str, config: ModelConfig, image_size: int, architecture: dict[str, Any] | None) -> HfDetector:
    """Build the detector `hf:REPO` for images [B, 3, image_size, image_size].

    Args:
        repo: a repository of the Hugging Face Hub, or a local folder with its `config.json`.
        config: the model's section of the config.
        image_size: height and width, pixels.
        architecture: `HfDetector.architecture` of an earlier build: the repository is left alone, the weights are
            random. Repositories with code of their own are needed all the same.

    Raises:
        ConfigError: the repository cannot be had, or holds no image model, or one that the config does not fit.
    """
    name = f"hf:{repo}"
    weights = config.pretrained is True and architecture is None
    described = describe_hf(repo, config, weights=weights, architecture=architecture)
    description = described.config
    with _quiet(), _library_errors(name):
        description.num_labels = 2
        if config.drop_path is not None:
            _set_drop_path(name, description, config.drop_path)
        check_patch(name, image_size, getattr(vision_config(description), "patch_size", None))
        network = _build_network(name, description, config.trust_remote_code)
        model = HfDetector(network, described.mean, described.std, image_size, config.dropout)
        model.unused = freeze_unused(model, name, image_size)
        if config.gradient_checkpointing:
            _enable_checkpointing(network)
    if described.folder is not None and weights:
        model.load_backbone(read_tensors(described.folder), f"weights of {name}")
    return model


def _build_network(name: str, description: Any, trust_remote_code: bool) -> nn.Module:
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, AutoModel, AutoModelForImageClassification

    own_code = getattr(description, "auto_map", {}) if trust_remote_code else {}
    classifies = (
        type(description) in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING or "AutoModelForImageClassification" in own_code
    )
    kind: Any = AutoModelForImageClassification if classifies else AutoModel
    network = kind.from_config(description, dtype=torch.float32, trust_remote_code=trust_remote_code)
    if network.main_input_name != "pixel_values":
        raise ConfigError(
            f"model.name = {name}; a {type(network).__name__} takes {network.main_input_name}, not images"
        )
    return cast(nn.Module, network)


def _enable_checkpointing(network: nn.Module) -> None:
    library = cast(Any, network)
    if hasattr(library, "activation_checkpointing_enable"):  # the name from transformers 5.23 on
        library.activation_checkpointing_enable()
    else:
        library.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def vision_config(description: Any) -> Any:
    """Return the part of a description that is about images."""
    return getattr(description, "vision_config", description)


def _must_interpolate(network: nn.Module, image_size: int) -> bool:
    library = cast(Any, network)
    own = getattr(vision_config(library.config), "image_size", image_size)
    if (own if isinstance(own, int) else max(own)) == image_size:
        return False
    inner = getattr(library, "vision_model", library.base_model)
    return any("interpolate_pos_encoding" in inspect.signature(part.forward).parameters for part in (library, inner))


@contextmanager
def _library_errors(name: str) -> Iterator[None]:
    """Turn what transformers raises about a repository into one line."""
    from huggingface_hub.errors import StrictDataclassError

    wrong = (AttributeError, ImportError, KeyError, OSError, TypeError, ValueError, RecursionError)
    try:
        yield
    except (*wrong, StrictDataclassError) as error:
        text = (str(error).strip() or type(error).__name__).split("\n")[0]
        hint = (
            "; set model.trust_remote_code=true if you trust its authors" if "trust_remote_code" in str(error) else ""
        )
        raise ConfigError(f"model.name = {name}; transformers cannot build it: {text}{hint}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and load reports off the console; what matters in them is raised here."""
    from transformers import utils

    logging: Any = utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
