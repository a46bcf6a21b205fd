"""Parameter groups, the schedule and averaged weights."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from hai.config.schema import ModelConfig, OptimConfig
from hai.errors import CheckpointError
from hai.models import backbone_parameters, build_model
from hai.optim import Ema, build_optimizer, learning_rate_at, learning_rate_scales, same_kind, set_learning_rate

CPU = torch.device("cpu")


class Net(nn.Module):
    """A toy with everything that groups tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, 4, 8))
        self.cls_token = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.norm = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.pos_embed.sum(1) + self.cls_token.sum(1)
        for block in self.blocks:
            x = block(x).relu()
        return self.head(self.norm(x))


def backbone_of(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters() if not name.startswith("head.")}


def settings(optimizer: torch.optim.Optimizer, key: str) -> dict[str, float]:
    return {name: group[key] for group in optimizer.param_groups for name in group["param_names"]}


def test_norms_biases_and_embeddings_are_not_decayed() -> None:
    torch.manual_seed(0)
    model = Net()
    config = OptimConfig(weight_decay=0.05)
    decays = settings(build_optimizer(model, config, backbone_of(model), CPU), "weight_decay")
    assert decays.keys() == dict(model.named_parameters()).keys()
    weights = {"head.weight", *(f"blocks.{i}.weight" for i in range(3))}
    assert {name for name, value in decays.items() if value} == weights
    config = OptimConfig(weight_decay=0.05, decay_norm_and_bias=True)
    decays = settings(build_optimizer(model, config, backbone_of(model), CPU), "weight_decay")
    assert set(decays.values()) == {0.05}


def test_layers_near_the_input_learn_slower() -> None:
    model = Net()
    config = OptimConfig(backbone_lr_scale=0.5, layer_decay=0.8)
    names = [name for name, _ in model.named_parameters()]
    scales = learning_rate_scales(names, config, backbone_of(model))
    assert scales["head.weight"] == 1
    assert scales["norm.weight"] == scales["blocks.2.bias"] == pytest.approx(0.5 * 0.8)
    assert scales["blocks.0.weight"] == pytest.approx(0.5 * 0.8**3)
    assert scales["pos_embed"] == pytest.approx(0.5 * 0.8**4)


@pytest.mark.parametrize(
    ("name", "num_layers", "deepest"),
    [
        ("timm:resnet10t", 4, "layer4.0.conv2.weight"),
        ("timm:vit_tiny_patch16_224", 12, "blocks.11.mlp.fc2.weight"),
        ("timm:convnext_atto", 15, "stages.3.blocks.1.mlp.fc2.weight"),
    ],
)
def test_layers_are_found_in_real_networks(name: str, num_layers: int, deepest: str) -> None:
    model = build_model(ModelConfig(name=name, pretrained=False), 32, seed=0)
    names = [name for name, _ in model.named_parameters()]
    scales = learning_rate_scales(names, OptimConfig(layer_decay=0.5), backbone_parameters(model))
    assert scales[f"network.{deepest}"] == 0.5
    assert min(scales.values()) == scales[names[0]] == 0.5 ** (num_layers + 1)


def test_the_learning_rate_reaches_every_group() -> None:
    model = Net()
    config = OptimConfig(learning_rate=0.1, backbone_lr_scale=0.25)
    optimizer = build_optimizer(model, config, backbone_of(model), CPU)
    assert settings(optimizer, "lr")["blocks.0.weight"] == pytest.approx(0.025)
    set_learning_rate(optimizer, 0.01)
    assert settings(optimizer, "lr")["head.weight"] == pytest.approx(0.01)
    assert settings(optimizer, "lr")["blocks.0.weight"] == pytest.approx(0.0025)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_is_the_textbooks(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    config = OptimConfig(name=name, learning_rate=0.1, weight_decay=0.5, betas=[0.8, 0.9])
    optimizer = build_optimizer(model, config, set(), CPU)
    before = model.weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    gradient = model.weight.grad
    assert gradient is not None
    optimizer.step()
    if name == "adamw":  # the first step's moments, corrected, are the gradient and its square
        expected = before * (1 - 0.1 * 0.5) - 0.1 * gradient / (gradient.abs() + 1e-8)
    else:
        decayed = gradient + 0.5 * before
        expected = before - 0.1 * (decayed + 0.9 * decayed)
    torch.testing.assert_close(model.weight.detach(), expected)


def test_frozen_parameters_wait_in_the_optimizer() -> None:
    model = Net()
    model.blocks.requires_grad_(False)
    optimizer = build_optimizer(model, OptimConfig(), backbone_of(model), CPU)
    before = model.blocks[0].weight.clone()
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    assert torch.equal(model.blocks[0].weight, before)
    model.blocks.requires_grad_(True)
    model(torch.randn(4, 8)).sum().backward()
    optimizer.step()
    assert not torch.equal(model.blocks[0].weight, before)


SCHEDULE = OptimConfig(
    learning_rate=1.0, warmup_epochs=0.5, warmup_start_learning_rate=0.2, min_learning_rate=0.1, schedule="cosine"
)


def test_cosine_with_warm_up() -> None:
    rates = [learning_rate_at(step, SCHEDULE, 8, 13) for step in range(13)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:] == pytest.approx([0.1 + 0.9 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(9)])
    assert rates[-1] == pytest.approx(0.1)
    assert learning_rate_at(500, SCHEDULE, 8, 13) == pytest.approx(0.1)


def test_linear_and_constant() -> None:
    linear = SCHEDULE.model_copy(update={"schedule": "linear"})
    assert [learning_rate_at(step, linear, 8, 7) for step in (4, 5, 6)] == pytest.approx([1.0, 0.55, 0.1])
    constant = SCHEDULE.model_copy(update={"schedule": "constant"})
    assert [learning_rate_at(step, constant, 8, 7) for step in (0, 4, 6)] == pytest.approx([0.2, 1.0, 1.0])


def test_a_long_warm_up_is_cut_to_the_run() -> None:
    config = SCHEDULE.model_copy(update={"warmup_epochs": 100.0})
    assert [learning_rate_at(step, config, 8, 4) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_the_shortest_runs_have_a_rate() -> None:
    none = SCHEDULE.model_copy(update={"warmup_epochs": 0.0})
    assert learning_rate_at(0, none, 8, 1) == 1.0
    assert [learning_rate_at(step, none, 8, 2) for step in range(2)] == pytest.approx([1.0, 0.1])


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()


def test_the_average_follows_its_formula() -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = build_optimizer(model, OptimConfig(learning_rate=0.01), set(), CPU)
    ema = Ema(model, 0.3)
    expected = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    for step in range(10):
        train_step(model, optimizer)
        ema.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        for name, p in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * p.detach().double()
    for name, value in expected.items():
        torch.testing.assert_close(ema.tensors[name].double(), value, rtol=1e-5, atol=1e-6)
    for name, buffer in model.named_buffers():
        assert torch.equal(ema.tensors[name], buffer), name
    assert ema.tensors.keys() == model.state_dict().keys()


def test_lists_are_divided_by_type() -> None:
    first, second = ([torch.zeros(2), torch.zeros(1).long(), torch.ones(3)] for _ in range(2))
    groups = same_kind(first, second)
    assert [[tensor.dtype for tensor in mine] for mine, _ in groups] == [[torch.float32] * 2, [torch.int64]]
    assert all(mine is first[i] for i, mine in zip((0, 2, 1), groups[0][0] + groups[1][0], strict=True))
    assert all(other is second[i] for i, other in zip((0, 2, 1), groups[0][1] + groups[1][1], strict=True))


def test_swapping_is_exact_and_survives_errors() -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = build_optimizer(model, OptimConfig(learning_rate=0.01), set(), CPU)
    ema = Ema(model, 0.9)
    train_step(model, optimizer)
    ema.update(0)
    own = {name: value.clone() for name, value in model.state_dict().items()}
    average = {name: value.clone() for name, value in ema.tensors.items()}
    storage = model.head.weight.data_ptr()

    def interrupted() -> None:
        with ema.swapped(model):
            torch.testing.assert_close(dict(model.state_dict()), average, rtol=0, atol=0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    torch.testing.assert_close(dict(model.state_dict()), own, rtol=0, atol=0)
    torch.testing.assert_close(ema.tensors, average, rtol=0, atol=0)
    assert model.head.weight.data_ptr() == storage
    train_step(model, optimizer)
    assert not torch.equal(model.head.weight, own["head.weight"])
    torch.testing.assert_close(ema.tensors, average, rtol=0, atol=0)


def test_the_average_is_restored_from_tensors() -> None:
    torch.manual_seed(0)
    first, second = Ema(Net(), 0.9), Ema(Net(), 0.9)
    second.load(first.tensors)
    torch.testing.assert_close(second.tensors, first.tensors, rtol=0, atol=0)
    assert second.tensors["head.weight"].data_ptr() != first.tensors["head.weight"].data_ptr()
    with pytest.raises(CheckpointError, match=r"2 tensors do not fit the model, first head\.weight"):
        second.load({**first.tensors, "head.weight": torch.zeros(3), "other": torch.zeros(1)})
