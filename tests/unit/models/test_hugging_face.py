"""transformers' networks as detectors, from tiny random ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from torch import nn

from hai.config.schema import ModelConfig
from hai.errors import ConfigError
from hai.models import architecture_of, backbone_parameters, build_model
from hai.models.backbone import IMAGENET_MEAN, IMAGENET_STD

transformers: Any = pytest.importorskip("transformers")

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
TINY_VIT = {**TINY, "num_labels": 7}
TINY_DINO = {key: value for key, value in TINY.items() if key != "intermediate_size"}


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a tiny ViT with seven classes, as its authors would publish it."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(1)
    transformers.ViTForImageClassification(transformers.ViTConfig(**TINY_VIT)).save_pretrained(folder)
    given = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "image_processor_type": "ViTImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(given), encoding="utf-8")
    return folder


def config(folder: Path | str, **values: object) -> ModelConfig:
    return ModelConfig(name=f"hf:{folder}", **{"pretrained": False, **values})


def test_published_weights_are_loaded_except_the_classifier(vit: Path) -> None:
    donor = transformers.ViTForImageClassification.from_pretrained(vit).state_dict()
    for source in (True, str(vit), str(vit / "model.safetensors")):
        model = build_model(config(vit, pretrained=source), 32, seed=0)
        own = model.network.state_dict()
        assert own["classifier.weight"].shape == (2, 16)
        for name, value in donor.items():
            if not name.startswith("classifier."):
                assert torch.equal(own[name], value), name


def test_without_weights_the_config_is_enough(vit: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((vit / "config.json").read_bytes())
    first, second = (build_model(config(tmp_path), 32, seed=seed) for seed in (0, 0))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ConfigError, match=r"the folder holds no model\.safetensors"):
        build_model(config(tmp_path, pretrained=True), 32, seed=0)


def test_images_reach_the_network_in_its_own_normalisation(vit: Path) -> None:
    model = build_model(config(vit), 32, seed=0).eval()
    pixels = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = model.network(pixel_values=(pixels - 0.5) / 0.5).logits
    torch.testing.assert_close(model((pixels - mean) / std), expected, rtol=1e-4, atol=1e-5)


def test_other_sizes_interpolate_the_position_embedding(vit: Path) -> None:
    model = build_model(config(vit, pretrained=True), 48, seed=0)
    assert model(torch.randn(2, 3, 48, 48)).shape == (2, 2)
    with pytest.raises(ConfigError, match=r"data\.image_size = 50; .* patches of 8 pixels; use 48 or 56"):
        build_model(config(vit), 50, seed=0)


def test_a_checkpoint_rebuilds_without_the_repository(vit: Path, tmp_path: Path) -> None:
    donor = build_model(config(vit, pretrained=True), 48, seed=0).eval()
    kept = json.loads(json.dumps(architecture_of(donor)))
    model = build_model(config("gone/gone"), 48, seed=1, architecture=kept).eval()
    model.load_state_dict(donor.state_dict())
    image = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(model(image), donor(image), rtol=0, atol=0)


@pytest.mark.parametrize("dropout", [None, 0.25])
def test_networks_without_a_classifier_get_one(dropout: float | None, tmp_path: Path) -> None:
    transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**TINY)).save_pretrained(tmp_path)
    model = build_model(config(tmp_path, pretrained=True, dropout=dropout), 32, seed=0)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 2)
    head = {name for name, p in model.named_parameters() if p.requires_grad} - backbone_parameters(model)
    assert head == {"classifier.1.weight", "classifier.1.bias"}
    assert model.classifier[0].p == (dropout or 0.0)


def test_backbone_weights_fill_a_classifier_network(tmp_path: Path) -> None:
    donor = transformers.Dinov2Model(transformers.Dinov2Config(**TINY_DINO))
    donor.save_pretrained(tmp_path)
    given = config(tmp_path, pretrained=True, dropout=0.25, drop_path=0.5, gradient_checkpointing=True)
    model = build_model(given, 32, seed=0)
    assert torch.equal(model.network.state_dict()["dinov2.layernorm.weight"], donor.layernorm.weight)
    head = {name for name, p in model.named_parameters() if p.requires_grad} - backbone_parameters(model)
    assert head == {"network.classifier.1.weight", "network.classifier.1.bias"}
    assert max(m.drop_prob for m in model.modules() if type(m).__name__.endswith("DropPath")) == 0.5
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.network.modules())
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    unused = {"network.dinov2.embeddings.mask_token"}
    assert {name for name, p in model.named_parameters() if p.grad is None} == unused
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == unused
    assert not backbone_parameters(model) & unused


def test_weights_of_another_network_are_refused(vit: Path, tmp_path: Path) -> None:
    bigger = transformers.ViTConfig(**{**TINY_VIT, "hidden_size": 24})
    transformers.ViTForImageClassification(bigger).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"tensors do not fit(.|\n)*: \[24\], the model has \[16\]"):
        build_model(config(vit, pretrained=str(tmp_path)), 32, seed=0)


def test_what_a_repository_cannot_do_is_one_line(vit: Path, tmp_path: Path) -> None:
    text_model = tmp_path / "text"
    transformers.BertConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1).save_pretrained(text_model)
    empty = tmp_path / "empty"
    empty.mkdir()
    for given, message in (
        (config(vit, drop_path=0.1), r"drop_path = 0\.1; hf:.* has no stochastic depth"),
        (config(text_model), r"a BertModel takes input_ids, not images"),
        (config(empty), r"transformers cannot build it"),
        (config("a/b/c"), r"neither a local folder nor a repository OWNER/NAME"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            build_model(given, 32, seed=0)
        assert "\n" not in str(caught.value)


def test_without_a_hub_the_message_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"HF_HUB_OFFLINE is set\); give a local folder .* model\.name=hf:FOLDER"):
        build_model(config("google/vit-base-patch16-224", pretrained=True), 224, seed=0)


CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

class OwnConfig(PretrainedConfig):
    model_type = "own-{tag}"

class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    main_input_name = "pixel_values"
    def __init__(self, config):
        super().__init__(config)
        self.classifier = torch.nn.Linear(3, config.num_labels)
        self.post_init()
    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=self.classifier(pixel_values.mean((2, 3))))
"""


def test_a_repositorys_own_code_runs_only_when_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "repo"
    folder.mkdir()
    (folder / "own.py").write_text(CODE.replace("{tag}", "net"), encoding="utf-8")
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForImageClassification": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps({"model_type": "own-net", "auto_map": auto_map}), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"set model\.trust_remote_code=true if you trust its authors"):
        build_model(config(folder), 32, seed=0)
    assert not (tmp_path / "modules").exists()
    model = build_model(config(folder, trust_remote_code=True), 32, seed=0)
    assert isinstance(model, nn.Module)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 2)
