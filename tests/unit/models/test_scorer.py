"""The ranker's network: its features, its heads, and that its weights are what learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from hai.config.load import config_from_yaml_text
from hai.config.schema import RunConfig
from hai.errors import CheckpointError, ConfigError
from hai.models import encoder as encoders
from hai.models.encoder import backbone_revision, build_encoder, encode, rounded_image_size
from hai.models.freeze import train_mode
from hai.models.scorer import Head, Scorer, build_scorer, feature_width, scores_of

TINY: dict[str, Any] = {
    "model_type": "dinov2",
    "architectures": ["Dinov2Model"],
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "image_size": 28,
    "patch_size": 14,
}
SIZE = 42
LEARNING = "model.freeze_backbone=false"


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    (folder / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
    return folder


def ranker(name: str, *settings: str) -> RunConfig:
    text = f"task: ranker\nmodel: {{name: '{name}', pretrained: false}}\ndata: {{image_size: {SIZE}}}\n"
    return config_from_yaml_text(text, "test", settings)


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def test_the_mlp_head_is_the_known_one() -> None:
    config = ranker("compact", LEARNING)
    head = Head(1024, config.model, config.pairs, 4).eval()
    assert sum(parameter.numel() for parameter in head.parameters()) == 674_177
    features = torch.randn(5, 1024)
    first, norm_1, _, _, second, norm_2 = head.projector  # type: ignore[misc]
    third, _, _, last = head.scorer  # type: ignore[misc]
    hidden = F.gelu(norm_1(first(features / features.norm(dim=1, keepdim=True))))
    hidden = norm_2(second(hidden))
    hidden = hidden / hidden.norm(dim=1, keepdim=True)
    torch.testing.assert_close(head(features), last(F.relu(third(hidden))))
    limit = (6 / (1024 + 512)) ** 0.5  # Xavier-uniform
    assert 0.95 * limit < float(first.weight.detach().abs().max()) <= limit
    assert not any(module.bias.any() for module in head.modules() if isinstance(module, nn.Linear))


@pytest.mark.parametrize(("field", "changes"), [("normalize_features", 3.0), ("normalize_hidden", 1.0)])
def test_lengths_count_where_they_are_not_normalised(field: str, changes: float) -> None:
    features = torch.randn(4, 16)
    kept, free = (
        Head(16, config.model, config.pairs, 4).eval()
        for config in (ranker("compact", LEARNING), ranker("compact", LEARNING, f"model.{field}=false"))
    )
    free.load_state_dict(kept.state_dict())
    assert not torch.allclose(kept(features), free(features))
    if field == "normalize_features":
        torch.testing.assert_close(kept(features), kept(changes * features))
        assert not torch.allclose(free(features), free(changes * features))


def test_outputs_of_each_objective() -> None:
    features = {"embedding": torch.randn(3, 384), "index": torch.arange(3)}
    for settings, width in [([], 1), (["pairs.ties=true"], 2), (["pairs.loss=coral"], 3)]:
        config = ranker("compact", LEARNING, "model.num_heads=2", *settings)
        model = build_scorer(config, SIZE)
        outputs = model(features)
        assert outputs.shape == (3, 2, width)
        scores = scores_of(outputs, config.pairs)
        assert scores.shape == (3, 2)
        assert not torch.allclose(scores[:, 0], scores[:, 1])  # heads start apart
        if width == 2:
            assert (outputs[..., 1] > 0).all()
        if width == 3:
            assert (outputs.diff(dim=-1) > 0).all()  # P(tier <= k) grows with k


def test_a_frozen_backbone_is_no_part_of_the_weights_and_built_for_images_only(
    dino: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ranker(f"hf:{dino}")
    model = build_scorer(config, SIZE, width=24)
    built: list[int] = []
    original = encoders.build_encoder

    def counted(*args: Any, **options: Any) -> Any:
        built.append(1)
        return original(*args, **options)

    monkeypatch.setattr("hai.models.scorer.build_encoder", counted)
    batch = {"image": images(3), "index": torch.arange(3)}
    encoder = original(config.model, SIZE, config.seed).eval()
    kept = {"embedding": encode(encoder, batch["image"]), "index": batch["index"]}
    model.eval()
    from_kept = model(kept)
    assert not built
    assert torch.equal(model(batch), from_kept)
    assert built == [1]
    assert torch.equal(model(batch), from_kept)
    assert built == [1]
    assert all(name.startswith("heads.") for name in model.state_dict())
    assert all(name.startswith("heads.") for name, _ in model.named_parameters())
    assert model.backbone_names() == set()


def test_features_do_not_depend_on_the_batch(dino: Path) -> None:
    encoder = build_encoder(ranker(f"hf:{dino}").model, SIZE, 1).eval()
    picture = images(5)
    alone = torch.cat([encode(encoder, one) for one in picture.split(1)])
    assert torch.equal(encode(encoder, picture), alone)


@pytest.mark.parametrize(
    ("settings", "learns"),
    [
        ([], lambda name: True),
        (["model.train_blocks=1"], lambda name: "layer.2." in name or ".layernorm." in name),
        (["model.lora_rank=2"], lambda name: ".lora_" in name),
        (
            ["model.lora_rank=2", "model.train_blocks=1"],
            lambda name: ".lora_" in name or "layer.2." in name or ".layernorm." in name,
        ),
    ],
)
def test_what_learns_is_what_is_saved(dino: Path, settings: list[str], learns: Any) -> None:
    config = ranker(f"hf:{dino}", LEARNING, *settings)
    model = build_scorer(config, SIZE)
    train_mode(model, set())
    outputs = model({"image": images(2), "index": torch.arange(2)})
    outputs.sum().backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    saved = set(model.state_dict())
    backbone = {name for name in moved if name.startswith("encoder.")}
    assert backbone
    assert backbone == model.backbone_names()
    assert all(learns(name) for name in backbone)
    assert moved <= saved
    assert {name for name in saved if name.startswith("encoder.network.")} == backbone

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    again = build_scorer(config, SIZE, architecture=json.loads(json.dumps(model.architecture)))
    again.load_state_dict(model.state_dict())
    batch = {"image": images(2, 1), "index": torch.arange(2)}
    assert torch.equal(again.eval()(batch), model.eval()(batch))
    with pytest.raises(RuntimeError, match="heads"):
        again.load_state_dict({name: value for name, value in model.state_dict().items() if "heads" not in name})


def test_adapters_change_nothing_at_first(dino: Path) -> None:
    plain = build_scorer(ranker(f"hf:{dino}", LEARNING), SIZE).eval()
    adapted = build_scorer(ranker(f"hf:{dino}", LEARNING, "model.lora_rank=4"), SIZE).eval()
    batch = {"image": images(2), "index": torch.arange(2)}
    torch.testing.assert_close(adapted(batch), plain(batch))


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "timm:convnext_atto"])
def test_timm_backbones_learn_in_their_last_blocks(name: str) -> None:
    config = config_from_yaml_text(
        f"task: ranker\nmodel: {{name: '{name}', pretrained: false, freeze_backbone: false, train_blocks: 1}}", "test"
    )
    model = build_scorer(config, 224)
    every = {name for name, _ in model.named_parameters() if name.startswith("encoder.")}
    assert model.backbone_names()
    assert model.backbone_names() < every


def test_an_image_in_several_comparisons_is_forwarded_once() -> None:
    model = build_scorer(ranker("compact", LEARNING, "model.dropout=0"), SIZE).eval()
    picture = images(3)
    index = torch.tensor([[0, 1], [1, 2], [2, 0], [1, 0]])
    seen: list[int] = []
    assert model.encoder is not None
    model.encoder.register_forward_hook(lambda module, given, found: seen.append(len(found)))
    outputs = model({"image": picture[index], "index": index})
    assert seen == [3]
    assert outputs.shape == (4, 2, 1, 1)
    torch.testing.assert_close(outputs, model({"image": picture, "index": torch.arange(3)})[index])


def test_class_token_and_patches(dino: Path) -> None:
    picture = images(2)
    found = {}
    for features in ("cls", "mean_patch", "cls_and_mean_patch"):
        config = ranker(f"hf:{dino}", f"model.features={features}").model
        encoder = build_encoder(config, SIZE, 1).eval()
        found[features] = encoder(picture)
        assert found[features].shape[1] == feature_width(config, SIZE)
    hidden = encoder.network(pixel_values=encoder.renormalize(picture)).last_hidden_state
    assert hidden.shape == (2, 1 + 9, 24)
    assert torch.equal(found["cls"], hidden[:, 0])
    torch.testing.assert_close(found["mean_patch"], hidden[:, 1:].mean(dim=1))
    assert torch.equal(found["cls_and_mean_patch"], torch.cat([found["cls"], found["mean_patch"]], dim=1))


@pytest.mark.parametrize(
    ("name", "size", "rounded"),
    [
        ("timm:vit_small_patch14_dinov2", 768, 770),
        ("timm:vit_small_patch14_dinov2", 756, 756),
        ("timm:vit_small_patch14_dinov2", 760, 756),
        ("timm:resnet18", 333, 333),
        ("compact", 333, 333),
    ],
)
def test_the_image_size_fits_the_patches(name: str, size: int, rounded: int) -> None:
    assert rounded_image_size(ranker(name).model, size) == rounded


def test_the_revision_names_the_weights(dino: Path, tmp_path: Path) -> None:
    config = ranker(f"hf:{dino}").model
    assert backbone_revision(config, 1) != backbone_revision(config, 2)
    encoder = build_encoder(config, SIZE, 1)
    encoder.network.save_pretrained(tmp_path)  # type: ignore[operator]
    published = config.model_copy(update={"name": f"hf:{tmp_path}", "pretrained": True})
    first = backbone_revision(published, 1)
    assert first == backbone_revision(published, 2)
    assert torch.equal(build_encoder(published, SIZE, 9).eval()(images(1)), encoder.eval()(images(1)))
    build_encoder(config, SIZE, 5).network.save_pretrained(tmp_path)  # type: ignore[operator]
    assert backbone_revision(published, 1) != first


@pytest.mark.parametrize("name", ["compact", "timm:resnet18"])
def test_a_checkpoint_of_a_ranker_is_a_backbone_for_the_next(name: str, tmp_path: Path) -> None:
    trained = build_scorer(ranker(name, LEARNING, "seed=5"), SIZE).eval()
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    frozen = build_scorer(ranker(name, f"model.pretrained={tmp_path}"), SIZE).eval()
    assert trained.encoder is not None
    features = encode(frozen.frozen_encoder(torch.device("cpu")), images(2))
    torch.testing.assert_close(features, trained.encoder(images(2)))


def test_a_head_is_not_served_on_another_backbone(dino: Path) -> None:
    trained = build_scorer(ranker(f"hf:{dino}"), SIZE)
    assert isinstance(build_scorer(ranker(f"hf:{dino}"), SIZE, architecture=trained.architecture), Scorer)
    with pytest.raises(CheckpointError, match=r"the checkpoint belongs to the backbone .*model\.pretrained=PATH"):
        build_scorer(ranker(f"hf:{dino}", "seed=43"), SIZE, architecture=trained.architecture)


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("dual_branch", [], "model.name = dual_branch; is a detector; a ranker takes compact"),
        ("compact", ["model.train_blocks=1"], "model.train_blocks = 1; has no effect with freeze_backbone = true"),
        ("compact", ["model.lora_rank=1"], "model.lora_rank = 1; has no effect with freeze_backbone = true"),
        ("compact", [LEARNING, "model.lora_rank=1"], "model.lora_rank = 1; the backbone has no attention layers"),
        ("compact", [LEARNING, "model.train_blocks=9"], "model.train_blocks = 9; the backbone has 4 blocks"),
        ("compact", [LEARNING, "model.train_blocks=0"], "model.train_blocks = 0; nothing of the backbone would learn"),
        ("timm:vit_tini", [], "model.name = timm:vit_tini; no such model in timm"),
    ],
)
def test_what_cannot_be_is_said(name: str, settings: list[str], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_scorer(ranker(name, *settings), SIZE)
    assert str(caught.value).startswith(line)
