"""The ranker's network: features of an image, or of the kept features themselves, and heads that score them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hai.config.schema import ModelConfig, PairsConfig, RunConfig
from hai.data.draws import hash_int
from hai.errors import CheckpointError, ConfigError
from hai.models.adapt import add_lora, names_of_last_blocks
from hai.models.backbone import Renormalize, freeze_unused
from hai.models.encoder import Encoder, backbone_revision, build_encoder, encode
from hai.models.hugging_face import without_folders
from hai.types import Batch

__all__ = ["Scorer", "build_scorer", "feature_width", "is_frozen", "scores_of"]

_HEAD_DRAW = 0x48454144


def is_frozen(config: ModelConfig) -> bool:
    """Say whether the backbone never learns, so that an image's features never change."""
    return config.freeze_backbone and config.unfreeze_after_epochs is None


class Head(nn.Module):
    """One head: features [B, D] -> outputs [B, O].

    `mlp`: features scaled to length 1, Linear D-512, LayerNorm, GELU, Dropout, Linear 512-256, LayerNorm, scaled to
    length 1, Linear 256-64, ReLU, Dropout, Linear 64-1; Xavier-uniform, biases 0. `linear`: Dropout, Linear D-1.
    CORAL adds K - 1 biases to the score, Rao-Kupper puts its tie parameter beside it.
    """

    def __init__(self, width: int, model: ModelConfig, pairs: PairsConfig, num_tiers: int) -> None:
        super().__init__()
        self._normalize, self._normalize_hidden = model.normalize_features, model.normalize_hidden
        if model.head == "mlp":
            rate = 0.1 if model.dropout is None else model.dropout
            self.projector: nn.Module = nn.Sequential(
                nn.Linear(width, 512), nn.LayerNorm(512), nn.GELU(), nn.Dropout(rate),
                nn.Linear(512, 256), nn.LayerNorm(256),
            )  # fmt: skip
            self.scorer: nn.Module = nn.Sequential(
                nn.Linear(256, 64), nn.ReLU(), nn.Dropout(rate), nn.Linear(64, 1)
            )  # fmt: skip
        else:
            self.projector = nn.Identity()
            self.scorer = nn.Sequential(nn.Dropout(model.dropout or 0.0), nn.Linear(width, 1))
            self._normalize_hidden = False
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        self.bias = nn.Parameter(torch.linspace(-1, 1, num_tiers - 1)) if pairs.loss == "coral" else None
        self.tie = nn.Parameter(torch.zeros(())) if pairs.ties else None

    def forward(self, features: Tensor) -> Tensor:
        """Return outputs [B, O] of features [B, D]."""
        hidden = F.normalize(features, dim=-1) if self._normalize else features
        hidden = self.projector(hidden)
        if self._normalize_hidden:
            hidden = F.normalize(hidden, dim=-1)
        score = cast(Tensor, self.scorer(hidden))
        if self.bias is not None:
            return score + self.bias
        if self.tie is not None:
            return torch.cat([score, F.softplus(self.tie).to(score.dtype).expand_as(score)], dim=-1)
        return score


class Scorer(nn.Module):
    """Heads on a backbone; its weights are what learned, no more.

    Args:
        heads: H heads.
        encoder: the backbone; or, where it never learns, a function that builds it when the first image comes.
        architecture: what a checkpoint keeps of the backbone, JSON.
    """

    def __init__(
        self, heads: list[Head], encoder: Encoder | Callable[[], Encoder], architecture: dict[str, Any]
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.encoder = encoder if isinstance(encoder, Encoder) else None
        self._build: Callable[[], Encoder] | None = None if isinstance(encoder, Encoder) else encoder
        self._frozen: list[Encoder] = []  # in a list, so that it is no part of the weights
        self.architecture = architecture
        learning = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        modules = {name.rpartition(".")[0] for name in learning}
        buffers = {name for name, _ in self.named_buffers() if name.rpartition(".")[0] in modules}
        self._kept = learning | buffers
        self.register_state_dict_post_hook(_drop_frozen)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_accept_without_frozen)  # type: ignore[no-untyped-call]

    def forward(self, batch: Batch) -> Tensor:
        """Return outputs [B, H, O] of images or kept features, [B, 2, H, O] of comparisons.

        Args:
            batch: `embedding` [B, D] or [B, 2, D]; without it `image` float32 [B, 3, S, S] or [B, 2, 3, S, S]; `index`
                [B] or [B, 2]. An image that occurs in several comparisons is forwarded once.
        """
        index = batch["index"]
        if index.dim() == 1:
            return self._scored(self._features(batch["embedding"] if "embedding" in batch else batch["image"]))
        given = batch["embedding"] if "embedding" in batch else batch["image"]
        distinct, place = torch.unique(index, return_inverse=True)
        first = torch.empty_like(distinct)
        first[place.flatten()] = torch.arange(index.numel(), device=index.device)
        return self._scored(self._features(given.flatten(0, 1)[first]))[place]

    def _features(self, given: Tensor) -> Tensor:
        if given.dim() == 2:
            return given
        if self.encoder is not None:
            return cast(Tensor, self.encoder(given))
        return encode(self.frozen_encoder(given.device), given)

    def _scored(self, features: Tensor) -> Tensor:
        return torch.stack([head(features) for head in self.heads], dim=1)

    def frozen_encoder(self, device: torch.device) -> Encoder:
        """Build the backbone that never learns, once, on the device."""
        if not self._frozen:
            assert self._build is not None
            self._frozen.append(self._build().eval().requires_grad_(False))
        return self._frozen[0].to(device)

    def backbone_names(self) -> set[str]:
        """Name the backbone's parameters that learn, or will once they are unfrozen."""
        return {name for name in self._kept if name.startswith("encoder.")} & dict(self.named_parameters()).keys()


def _drop_frozen(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    kept = cast(Scorer, module)._kept
    for name in [name for name in state if name.startswith(prefix) and name.removeprefix(prefix) not in kept]:
        del state[name]


def _accept_without_frozen(module: nn.Module, found: Any) -> None:
    kept = cast(Scorer, module)._kept
    found.missing_keys[:] = [name for name in found.missing_keys if name in kept]


def scores_of(outputs: Tensor, pairs: PairsConfig) -> Tensor:
    """Return scores [..., H] of outputs [..., H, O], higher is better."""
    return outputs.mean(dim=-1) if pairs.loss == "coral" else outputs[..., 0]


def feature_width(config: ModelConfig, image_size: int) -> int:
    """Return D, the number of features of an image, from a backbone without weights, which is built once a process."""
    return _feature_width(config.model_copy(update={"pretrained": False}).model_dump_json(), image_size)


@functools.lru_cache(maxsize=16)
def _feature_width(config: str, image_size: int) -> int:
    bare = ModelConfig.model_validate_json(config)
    with torch.device("meta"), torch.no_grad():
        return int(build_encoder(bare, image_size, 0).eval()(torch.zeros(1, 3, image_size, image_size)).shape[1])


def build_scorer(
    config: RunConfig, image_size: int, *, architecture: dict[str, Any] | None = None, width: int | None = None
) -> Scorer:
    """Build the ranker's network on the CPU; torch's own random state is left as it was.

    Args:
        config: of the run.
        image_size: S, pixels, a multiple of the patch size.
        architecture: what a checkpoint kept of its backbone; the weights that it holds are then not fetched.
        width: D, if known.

    Raises:
        ConfigError: what the config asks for does not exist, does not fit together or cannot be reached.
        CheckpointError: the backbone has other weights than the one that the checkpoint was trained on.
    """
    model, seed = config.model, config.seed
    _check(model)
    kept: dict[str, Any] = {}
    encoder: Encoder | Callable[[], Encoder]
    if is_frozen(model):
        kept["revision"] = backbone_revision(model, seed)
        if architecture is not None and architecture.get("revision") != kept["revision"]:
            raise CheckpointError(
                f"model.name = {model.name}: the checkpoint belongs to the backbone {architecture.get('revision')}, "
                f"here is {kept['revision']}; give it the same weights with model.pretrained=PATH"
            )
        width = width or (architecture or {}).get("width") or feature_width(model, image_size)

        def encoder() -> Encoder:
            return build_encoder(model, image_size, seed)

    else:
        whole = model.train_blocks is None and model.lora_rank is None
        described = (architecture or {}).get("hf")
        if architecture is not None and whole:  # the checkpoint holds every weight
            encoder = build_encoder(
                model.model_copy(update={"pretrained": False}), image_size, seed, architecture=described
            )
            if "mean" in architecture:
                encoder.renormalize = Renormalize(tuple(architecture["mean"]), tuple(architecture["std"]))
        else:
            encoder = build_encoder(model, image_size, seed)
        width = width or (architecture or {}).get("width") or feature_width(model, image_size)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            _let_learn(encoder, model)
        freeze_unused(encoder, model.name, image_size, width)
        if whole and model.name.startswith("hf:"):
            kept["hf"] = without_folders(cast(Any, encoder.network).config.to_dict())
            kept |= {"mean": list(encoder.renormalize.mean), "std": list(encoder.renormalize.std)}
    kept["width"] = width
    heads = []
    for number in range(model.num_heads):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(hash_int(seed, _HEAD_DRAW, number) >> 1)
            heads.append(Head(width, model, config.pairs, len(config.data.tiers)))
    return Scorer(heads, encoder, kept)


def _check(model: ModelConfig) -> None:
    for field in ("train_blocks", "lora_rank"):
        value = getattr(model, field)
        if model.freeze_backbone and value is not None:
            raise ConfigError(f"model.{field} = {value}; has no effect with freeze_backbone = true; set that to false")
    if model.train_blocks == 0 and model.lora_rank is None:
        raise ConfigError("model.train_blocks = 0; nothing of the backbone would learn; set freeze_backbone to true")


def _let_learn(encoder: Encoder, model: ModelConfig) -> None:
    """Freeze all of the backbone but what the config lets learn."""
    if model.train_blocks is None and model.lora_rank is None:
        return
    learning = names_of_last_blocks(encoder.network, model.train_blocks or 0)
    adapters = add_lora(encoder.network, model.lora_rank) if model.lora_rank else set()
    for name, parameter in encoder.network.named_parameters():
        own = name.replace(".base_layer.", ".")
        parameter.requires_grad_(name in adapters or own in learning)
