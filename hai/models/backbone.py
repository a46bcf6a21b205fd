"""timm's networks as detectors (`timm:NAME`), and what they share with other published networks."""

from __future__ import annotations

import difflib
import sys
from typing import Any, cast

import torch
from torch import Tensor, nn

from hai.config.schema import ModelConfig
from hai.errors import ConfigError
from hai.memory import first_line
from hai.models.weights import copy_tensors, hub_folder, read_tensors

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Renormalize",
    "TimmDetector",
    "build_timm",
    "build_timm_network",
    "check_patch",
    "freeze_unused",
    "load_timm_weights",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Renormalize(nn.Module):
    """Turn images normalised with ImageNet's mean and deviation, as all models here take them, into the network's own.

    Its buffers are part of the weights, so that a checkpoint serves with the transform it was trained with.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean, self.std = mean, std
        mean_in, std_in, mean_out, std_out = (torch.tensor(v) for v in (IMAGENET_MEAN, IMAGENET_STD, mean, std))
        self.register_buffer("scale", (std_in / std_out).view(3, 1, 1))
        self.register_buffer("shift", ((mean_in - mean_out) / std_out).view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Return the image [B, 3, H, W] in the network's normalisation."""
        return image * self.scale + self.shift


class TimmDetector(nn.Module):
    """A timm network with a classifier of two logits; image [B, 3, S, S] -> logits [B, 2]."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        given = cast(Any, network).pretrained_cfg
        self.renormalize = Renormalize(tuple(given["mean"]), tuple(given["std"]))
        self.network = network
        self.unused: set[str] = set()

    def forward(self, image: Tensor) -> Tensor:
        """Return logits [B, 2] of images [B, 3, S, S]."""
        return cast(Tensor, self.network(self.renormalize(image)))

    def backbone_names(self) -> set[str]:
        """Name the parameters of everything but the classifier, as far as they are used."""
        heads = tuple(f"network.{prefix}" for prefix in _head_prefixes(self.network))
        return {name for name, _ in self.named_parameters() if not name.startswith(heads)} - self.unused

    def load_backbone(self, tensors: dict[str, Tensor], where: str) -> None:
        """Fill the network, except its classifier, from the tensors of a timm checkpoint."""
        load_timm_weights(self.network, tensors, where)


def build_timm(name: str, config: ModelConfig, image_size: int) -> TimmDetector:
    """Build the detector `timm:NAME` for images [B, 3, image_size, image_size]."""
    import timm

    published = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    fixed_size = published is not None and published.fixed_input_size
    network = build_timm_network(
        name,
        config.pretrained is True,
        config.gradient_checkpointing,
        num_classes=2,
        drop_rate=config.dropout,
        drop_path_rate=config.drop_path,
        img_size=image_size if fixed_size else None,
    )
    check_patch(f"timm:{name}", image_size, _patch_of(network))
    model = TimmDetector(network)
    model.unused = freeze_unused(model, f"timm:{name}", image_size)
    return model


def _patch_of(network: nn.Module) -> tuple[int, ...] | None:
    """Return height and width of the patches that a network cuts images into; None where they overlap, or are none."""
    embedding = getattr(network, "patch_embed", None)
    patch, stride = getattr(embedding, "patch_size", None), getattr(getattr(embedding, "proj", None), "stride", None)
    if patch is None:
        return None
    patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
    return patch if stride is None or tuple(stride) == patch else None


def build_timm_network(name: str, pretrained: bool, gradient_checkpointing: bool, **options: Any) -> nn.Module:
    """Build a timm network.

    Args:
        name: as timm lists it.
        pretrained: fill it with the published weights.
        gradient_checkpointing: recompute activations in the backward pass; BatchNorm then sees each batch twice, so its
            running statistics follow the data at almost twice the pace.
        options: as `timm.create_model` takes them; those that are None are left out.

    Raises:
        ConfigError: an unknown name, an option that the network does not have, or weights out of reach.
    """
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() lists them"
        raise ConfigError(f"model.name = timm:{name}; no such model in timm {timm.__version__}; {hint}")
    given = {key: value for key, value in options.items() if value is not None}
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, **given)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        shown = ", ".join(f"{key} = {value}" for key, value in given.items())
        raise ConfigError(f"model.name = timm:{name}; not to be had with {shown}: {first_line(error)}") from error
    if gradient_checkpointing:
        try:
            cast(Any, network).set_grad_checkpointing(True)
        except (AssertionError, AttributeError) as error:
            raise ConfigError(
                f"model.gradient_checkpointing = true; timm:{name} does not have it; set it to false"
            ) from error
    if pretrained:
        repo = cast(Any, network).pretrained_cfg.get("hf_hub_id")
        if not repo:
            raise ConfigError(
                f"model.pretrained = true; timm:{name} has no published safetensors weights; "
                "set it to false or to the path of a safetensors file"
            )
        load_timm_weights(network, read_tensors(hub_folder(repo, weights=True, config=False)), f"weights of {repo}")
    return network


def load_timm_weights(network: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Fill a timm network, except its classifier; position embeddings are resampled to the network's image size.

    Args:
        network: built by timm.
        tensors: names and values as timm publishes them.
        where: what the tensors are, for messages.

    Raises:
        ConfigError: names the tensors that are missing, unknown or of another shape.
    """
    adapt = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    copy_tensors(network, adapt(tensors, network) if adapt else tensors, where, ignored=_head_prefixes(network))


def _head_prefixes(network: nn.Module) -> tuple[str, ...]:
    names = cast(Any, network).pretrained_cfg.get("classifier") or ()
    return tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))


def check_patch(name: str, image_size: int, patch: int | tuple[int, ...] | list[int] | None) -> None:
    """Refuse an image size that a network cannot cut into whole patches.

    Raises:
        ConfigError: names the nearest sizes that fit.
    """
    size = patch if isinstance(patch, int) else max(patch or (1,))
    if image_size % size:
        below = image_size // size * size
        near = " or ".join(str(value) for value in (below, below + size) if value >= 32)
        raise ConfigError(
            f"data.image_size = {image_size}; {name} cuts images into patches of {size} pixels; use {near}"
        )


def freeze_unused(model: nn.Module, name: str, image_size: int, width: int = 2) -> set[str]:
    """Run one black image through the model, so that what it cannot take is said before training.

    Parameters that the output [1, width] does not depend on, such as tokens of a pretraining task, are frozen for
    good: DDP would wait for their gradients.

    Returns:
        The names of those parameters.

    Raises:
        ConfigError: the model refuses images of this size, or returns something else.
    """
    training = model.training
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    try:
        logits: Tensor = model.eval()(torch.zeros(1, 3, image_size, image_size))
        gradients = torch.autograd.grad(logits.sum(), list(parameters.values()), allow_unused=True)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"data.image_size = {image_size}; {name} refuses it: {first_line(error)}") from error
    finally:
        model.train(training)
    if logits.shape != (1, width):
        shape = list(logits.shape)
        raise ConfigError(f"model.name = {name}; it returns {shape} for one image, not [1, {width}]; not usable here")
    unused = {name for name, gradient in zip(parameters, gradients, strict=True) if gradient is None}
    for parameter in unused:
        parameters[parameter].requires_grad_(False)
    return unused
