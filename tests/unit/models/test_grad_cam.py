"""Grad-CAM: models that look at a known place are shown looking there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hai.config.schema import ModelConfig
from hai.models import build_model
from hai.models.compact import high_pass
from hai.models.grad_cam import IMAGE, SPECTRUM, grad_cam, spectrum_of

SIZE, MARK = 64, 16


class Pooled(nn.Module):
    """A map of four channels, averaged over all places or over those of a window, and a linear classifier."""

    def __init__(self, window: tuple[slice, slice] = (slice(None), slice(None))) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.features = nn.Sequential(nn.Conv2d(3, 4, 5, stride=4, padding=2), nn.ReLU())
        self.classifier = nn.Linear(4, 2)
        self.window = window

    def forward(self, image: Tensor) -> Tensor:
        rows, columns = self.window
        logits: Tensor = self.classifier(self.features(image)[:, :, rows, columns].mean(dim=(2, 3)))
        return logits


def pictures(count: int, seed: int, mark: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Draw smooth pictures [B, 3, 64, 64], labels [B] and (row, column) [B, 2] of the mark, which fakes have."""
    draw = torch.Generator().manual_seed(seed)
    image = F.interpolate(torch.randn(count, 3, 8, 8, generator=draw), size=SIZE, mode="bilinear")
    image += 0.05 * torch.randn(image.shape, generator=draw)
    label = torch.randint(0, 2, (count,), generator=draw)
    place = MARK * torch.randint(0, SIZE // MARK, (count, 2), generator=draw)
    for i in label.nonzero().flatten().tolist():
        row, column = place[i].tolist()
        image[i, :, row : row + MARK, column : column + MARK] += mark
    return image, label, place


CHECKERS = 0.6 * ((torch.arange(MARK)[:, None] + torch.arange(MARK)) % 2 * 2.0 - 1)
BRIGHT = 2 * torch.ones(MARK, MARK)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "mark", "num_steps"), [("compact", CHECKERS, 30), ("timm:test_vit", BRIGHT, 40)])
def test_a_trained_model_is_shown_looking_at_what_gives_fakes_away(name: str, mark: Tensor, num_steps: int) -> None:
    model = build_model(ModelConfig(name=name, pretrained=False), SIZE, seed=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for step in range(num_steps):
        image, label, _ = pictures(16, step, mark)
        loss = F.cross_entropy(model(image), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    image, label, place = (values[:40] for values in pictures(80, 10**6, mark))
    model.eval()
    with torch.no_grad():
        assert (model(image).argmax(dim=1) == label).float().mean() > 0.9
    fake = label == 1
    evidence = grad_cam(model, image[fake], label[fake])[IMAGE]
    assert evidence.shape == (fake.sum(), 4, 4)
    peak = torch.stack([evidence.flatten(1).argmax(dim=1) // 4, evidence.flatten(1).argmax(dim=1) % 4], dim=1)
    hits = (peak == place[fake] // MARK).all(dim=1).float().mean()
    assert hits > 0.6, f"{hits:.2f} of the peaks lie on the mark; chance is 0.06"


def test_evidence_lies_only_where_the_model_looks_and_only_for_the_call_it_speaks_for() -> None:
    model = Pooled((slice(0, 4), slice(8, 16))).eval()
    with torch.no_grad():
        model.classifier.weight.copy_(torch.tensor([[0.0] * 4, [1.0] * 4]))
    image = torch.randn(2, 3, SIZE, SIZE)
    fake, real = (grad_cam(model, image, torch.tensor([call, call]))[IMAGE] for call in (1, 0))
    assert fake.shape == (2, 16, 16)
    assert (fake[:, :4, 8:] > 0).any()
    elsewhere = torch.ones(16, 16, dtype=torch.bool)
    elsewhere[:4, 8:] = False
    assert not fake[:, elsewhere].any()
    assert not real.any(), "every channel speaks for fake"


def test_where_a_network_averages_its_map_the_evidence_is_that_of_the_paper() -> None:
    model, image = Pooled().eval(), torch.randn(3, 3, SIZE, SIZE)
    activation = model.features(image).detach().requires_grad_()
    logits = model.classifier(activation.mean(dim=(2, 3)))
    (gradient,) = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), activation)
    alpha = gradient.mean(dim=(2, 3), keepdim=True)  # equation 1; the mean over places instead of the sum scales it
    expected = F.relu((alpha * activation).sum(dim=1)).detach()  # equation 2
    assert expected.any()
    torch.testing.assert_close(grad_cam(model, image, torch.ones(3))[IMAGE], expected)


def test_nothing_is_left_behind_and_frozen_models_are_explained_in_inference_mode_too() -> None:
    model = Pooled().eval()
    image = torch.randn(1, 3, SIZE, SIZE)
    free = grad_cam(model, image, torch.ones(1))[IMAGE]
    before = image.clone()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.inference_mode():
        frozen = grad_cam(model, image.clone(), torch.ones(1))[IMAGE]
    torch.testing.assert_close(frozen, free)
    assert torch.equal(image, before)
    assert not image.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_transformer_without_class_token_and_a_hugging_face_one_have_a_place_for_each_patch(tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    transformers.ViTConfig(**shape, image_size=32, patch_size=8).save_pretrained(tmp_path)
    for name in (f"hf:{tmp_path}", "timm:test_vit4"):
        model = build_model(ModelConfig(name=name, pretrained=False), 32, seed=0).eval()
        evidence = grad_cam(model, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))[IMAGE]
        side = 4 if name.startswith("hf:") else 2
        assert evidence.shape == (2, side, side), name
        assert evidence.any(), name


@pytest.mark.parametrize("name", ["dual_branch", "dual_branch_v2"])
def test_a_frequency_branch_has_a_view_of_its_own(name: str) -> None:
    model = build_model(ModelConfig(name=name, pretrained=False), SIZE, seed=0).eval()
    image = torch.randn(2, 3, SIZE, SIZE)
    evidence, spectrum = grad_cam(model, image, torch.tensor([0, 1])), spectrum_of(model, image)
    assert evidence[IMAGE].shape == (2, 2, 2)
    assert spectrum is not None
    plane = (SIZE, SIZE) if name == "dual_branch" else (SIZE, SIZE + 1)
    assert spectrum.shape == (2, *plane)
    assert evidence[SPECTRUM].shape[1:] == ((8, 8) if name == "dual_branch" else plane)
    assert (evidence[SPECTRUM] >= 0).all()


@pytest.mark.parametrize("size", [64, 66])
def test_half_a_spectrum_is_drawn_whole(size: int) -> None:
    model = build_model(ModelConfig(name="dual_branch_v2", pretrained=False), 64, seed=0)
    image = torch.randn(1, 3, size, size)
    drawn = spectrum_of(model, image)
    assert drawn is not None
    residual = high_pass(image.mean(dim=1))
    whole = torch.fft.fftshift(torch.fft.fft2(residual, norm="ortho"), dim=(-2, -1)).abs()
    expected = torch.log(torch.cat([whole, whole[:, :, :1]], dim=2) + 1e-4)  # the highest frequency, on both sides
    slope = drawn.std() / expected.std()
    torch.testing.assert_close((drawn - drawn.mean()) / slope, expected - expected.mean(), atol=1e-2, rtol=1e-2)


def test_other_detectors_have_no_spectrum() -> None:
    assert spectrum_of(Pooled(), torch.randn(1, 3, SIZE, SIZE)) is None


def test_a_model_that_keeps_no_places_apart_has_no_view() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)).eval()
    assert grad_cam(model, torch.randn(1, 3, 8, 8), torch.ones(1)) == {}
