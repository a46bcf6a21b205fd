"""What holds for every detector: seeds, weights from files, freezing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hai.config.schema import ModelConfig
from hai.errors import ConfigError
from hai.models import backbone_parameters, build_model, set_frozen, statistics_kept, train_mode

RESNET = ModelConfig(name="timm:resnet10t", pretrained=False)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("name", ["compact", "timm:resnet10t"])
def test_the_seed_decides_the_weights(name: str) -> None:
    config = ModelConfig(name=name, pretrained=False)
    first = build_model(config, 64, seed=1)
    torch.manual_seed(5)
    second, third = build_model(config, 64, seed=1), build_model(config, 64, seed=2)
    torch.testing.assert_close(state(first), state(second), rtol=0, atol=0)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters(), strict=True))


def test_torchs_random_state_is_left_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    build_model(RESNET, 64, seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("form", ["file", "folder"])
@pytest.mark.parametrize("name", ["compact", "timm:resnet10t"])
def test_a_checkpoint_of_the_same_detector_fills_it_whole(name: str, form: str, tmp_path: Path) -> None:
    donor = build_model(ModelConfig(name=name, pretrained=False), 64, seed=1)
    save_file(donor.state_dict(), tmp_path / "model.safetensors")
    path = tmp_path if form == "folder" else tmp_path / "model.safetensors"
    model = build_model(ModelConfig(name=name, pretrained=str(path)), 64, seed=2)
    torch.testing.assert_close(state(model), state(donor), rtol=0, atol=0)


def test_sharded_weights_are_read(tmp_path: Path) -> None:
    donor = build_model(ModelConfig(name="compact"), 64, seed=1)
    names = list(donor.state_dict())
    shards = {"model-1.safetensors": names[:5], "model-2.safetensors": names[5:]}
    for file, part in shards.items():
        save_file({name: donor.state_dict()[name] for name in part}, tmp_path / file)
    pairs = ", ".join(f'"{name}": "{file}"' for file, part in shards.items() for name in part)
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{pairs}}}}}', encoding="utf-8")
    model = build_model(ModelConfig(name="compact", pretrained=str(tmp_path)), 64, seed=2)
    torch.testing.assert_close(state(model), state(donor), rtol=0, atol=0)


def test_tensors_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    tensors = state(build_model(ModelConfig(name="compact"), 64, seed=1))
    tensors["classifier.weight"] = torch.zeros(3, 384)
    del tensors["blocks.0.0.weight"]
    tensors["more"] = torch.zeros(2)
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    with pytest.raises(ConfigError) as caught:
        build_model(ModelConfig(name="compact", pretrained=str(path)), 64, seed=2)
    assert str(caught.value).split("\n") == [
        f"model.pretrained = {path}; 3 tensors do not fit the model; give weights of the same network:",
        "  blocks.0.0.weight: missing, the model has [24, 6, 3, 3]",
        "  classifier.weight: [3, 384], the model has [2, 384]",
        "  more: [2], the model has no such tensor",
    ]


def test_paths_without_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"not tensors at all")
    for path, rule in (
        (tmp_path / "none.safetensors", "no such file or folder"),
        (tmp_path, "the folder holds no model.safetensors"),
        (tmp_path / "broken.safetensors", "not a readable safetensors file"),
    ):
        with pytest.raises(ConfigError, match=rule) as caught:
            build_model(ModelConfig(name="compact", pretrained=str(path)), 64, seed=0)
        assert "\n" not in str(caught.value)


def test_frozen_parts_get_no_gradient_and_compute_as_when_serving() -> None:
    model = build_model(RESNET.model_copy(update={"drop_path": 0.5}), 64, seed=0)
    backbone = backbone_parameters(model)
    set_frozen(model, backbone, True)
    train_mode(model, backbone)
    before = state(model)
    image = torch.randn(4, 3, 64, 64)
    first, second = model(image), model(image)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    first.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        "network.fc.weight",
        "network.fc.bias",
    }
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)

    set_frozen(model, backbone, False)
    train_mode(model, set())
    model(image).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not torch.equal(model.state_dict()["network.bn1.running_mean"], before["network.bn1.running_mean"])


def test_statistics_can_be_kept_for_a_pass() -> None:
    model = build_model(ModelConfig(name="compact", dropout=0.0), 64, seed=0)
    image = torch.randn(4, 3, 64, 64)
    before = state(model)
    with statistics_kept(model):
        kept = model(image)
    torch.testing.assert_close(state(model), before, rtol=0, atol=0)
    torch.testing.assert_close(model(image), kept, rtol=0, atol=0)
    assert model.state_dict()["blocks.0.1.num_batches_tracked"] == 1
