"""The small convolutional detector."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hai.config.schema import ModelConfig
from hai.errors import ConfigError
from hai.models import backbone_parameters, build_model
from hai.models.compact import high_pass

COMPACT = ModelConfig(name="compact")


def test_parameters_are_counted() -> None:
    model = build_model(COMPACT, 224, seed=0)
    assert sum(p.numel() for p in model.parameters()) == 220_514
    assert backbone_parameters(model) == {n for n, _ in model.named_parameters() if n.startswith("blocks.")}


@pytest.mark.parametrize("size", [32, 65, 224])
def test_any_size_gives_two_logits(size: int) -> None:
    assert build_model(COMPACT, size, seed=0)(torch.randn(2, 3, size, size + 3)).shape == (2, 2)


def test_high_pass_is_the_distance_from_the_neighbourhood_mean() -> None:
    image = torch.rand(1, 2, 5, 6, dtype=torch.float64)
    result = high_pass(image)
    for channel in range(2):
        for row in range(5):
            for column in range(6):
                inside = image[0, channel, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
                expected = image[0, channel, row, column] - inside.mean()
                torch.testing.assert_close(result[0, channel, row, column], expected)


def test_checkpointing_changes_neither_gradients_nor_statistics() -> None:
    image = torch.randn(4, 3, 64, 64)
    gradients, states = [], []
    for recompute in (False, True):
        model = build_model(
            COMPACT.model_copy(update={"gradient_checkpointing": recompute, "dropout": 0.0}), 64, seed=0
        )
        model(image).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
        states.append(dict(model.state_dict()))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_it_learns_what_only_the_residual_shows() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(64) % 2
    noise = 0.1 * torch.randn(64, 3, 32, 32, generator=generator)
    image = torch.randn(64, 3, 1, 1, generator=generator) + noise * label.view(-1, 1, 1, 1)
    model = build_model(COMPACT, 32, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(image), label).backward()
        optimizer.step()
    model.train()  # statistics of this batch: the running ones have not settled after so few steps
    assert (model(image).argmax(dim=1) == label).float().mean() > 0.95


def test_stochastic_depth_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.drop_path = 0\.1; compact has no stochastic depth"):
        build_model(ModelConfig(name="compact", drop_path=0.1), 32, seed=0)
