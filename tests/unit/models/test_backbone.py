"""timm's networks as detectors."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file

from hai.config.schema import ModelConfig
from hai.errors import ConfigError
from hai.models import backbone_parameters, build_model
from hai.models.backbone import IMAGENET_MEAN, IMAGENET_STD


def config(name: str, **values: object) -> ModelConfig:
    return ModelConfig(name=name, **{"pretrained": False, **values})


def cached(cache: Path, repo: str) -> Path:
    """Lay out an empty snapshot of a repository as the hub's client caches it."""
    root = cache / ("models--" + repo.replace("/", "--"))
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    folder = root / "snapshots" / ("0" * 40)
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Switch the hub off and give it an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_networks_become_detectors(name: str) -> None:
    model = build_model(config(f"timm:{name}"), 96, seed=0)
    assert model.training
    assert model(torch.randn(2, 3, 96, 96)).shape == (2, 2)
    head = {n for n, _ in model.named_parameters()} - backbone_parameters(model)
    assert len(head) == 2
    assert all(n.startswith(("network.fc.", "network.head.")) for n in head)


def test_images_reach_the_network_in_its_own_normalisation() -> None:
    model = build_model(config("timm:vit_tiny_patch16_224"), 32, seed=0).eval()
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = model.network((pixels - 0.5) / 0.5)  # the mean and deviation that this network was trained with
    torch.testing.assert_close(model((pixels - mean) / std), expected, rtol=1e-4, atol=1e-5)


def test_options_reach_the_network() -> None:
    given = config("timm:vit_tiny_patch16_224", dropout=0.25, drop_path=0.5, gradient_checkpointing=True)
    network = build_model(given, 32, seed=0).network
    assert network.head_drop.p == 0.25
    assert network.blocks[-1].drop_path1.drop_prob == 0.5
    assert network.grad_checkpointing is True


@pytest.mark.parametrize(
    ("values", "size", "message"),
    [
        ({"name": "timm:resnet10tt"}, 64, r"timm:resnet10tt; no such model in timm .*; did you mean resnet10t"),
        ({"name": "timm:dla46_c", "drop_path": 0.1}, 64, r"timm:dla46_c; not to be had with .*drop_path_rate = 0\.1"),
        (
            {"name": "timm:vit_tiny_patch16_224"},
            100,
            r"data\.image_size = 100; .* patches of 16 pixels; use 96 or 112",
        ),
        ({"name": "timm:dla46_c", "gradient_checkpointing": True}, 64, r"gradient_checkpointing = true; timm:dla46_c"),
    ],
)
def test_what_a_network_cannot_do_is_one_line(values: dict[str, object], size: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_model(config(**values), size, seed=0)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_without_a_hub_the_message_says_how_to_go_on(offline: Path) -> None:
    for name in ("timm:resnet10t", "dual_branch"):
        with pytest.raises(ConfigError) as caught:
            build_model(config(name, pretrained=True), 64, seed=0)
        text = str(caught.value)
        assert "\n" not in text
        assert "set model.pretrained=false, or model.pretrained to the path of a safetensors file" in text


def test_cached_weights_need_no_hub(offline: Path) -> None:
    donor = timm.create_model("resnet10t", num_classes=1000)
    save_file(donor.state_dict(), cached(offline, donor.pretrained_cfg["hf_hub_id"]) / "model.safetensors")
    model = build_model(config("timm:resnet10t", pretrained=True), 64, seed=0)
    for name, value in donor.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(model.network.state_dict()[name], value), name
    assert model.network.fc.weight.shape == (2, 512)


def test_position_embeddings_are_resampled_and_the_rest_copied(tmp_path: Path) -> None:
    donor = timm.create_model("vit_tiny_patch16_224")
    save_file(donor.state_dict(), tmp_path / "vit.safetensors")
    model = build_model(config("timm:vit_tiny_patch16_224", pretrained=str(tmp_path / "vit.safetensors")), 64, seed=0)
    assert model.network.pos_embed.shape == (1, 17, 192)
    torch.testing.assert_close(model.network.pos_embed[0, 0], donor.pos_embed[0, 0])
    assert torch.equal(model.network.blocks[3].mlp.fc1.weight, donor.blocks[3].mlp.fc1.weight)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "other.safetensors")
    given = config("timm:resnet10t", pretrained=str(tmp_path / "other.safetensors"))
    with pytest.raises(ConfigError, match=r"tensors do not fit the model(.|\n)*and \d+ more"):
        build_model(given, 64, seed=0)


def test_efficientnet_weights_fill_the_dual_branch(tmp_path: Path) -> None:
    donor = timm.create_model("efficientnet_b4", num_classes=1000)
    save_file(donor.state_dict(), tmp_path / "b4.safetensors")
    model = build_model(config("dual_branch_v2", pretrained=str(tmp_path / "b4.safetensors")), 64, seed=0)
    assert torch.equal(model.spatial.backbone.conv_head.weight, donor.conv_head.weight)


def test_patches_that_overlap_fit_every_size() -> None:
    model = build_model(ModelConfig(name="timm:pvt_v2_b0", pretrained=False), 64, seed=0)
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 2)
