"""The two-branch detectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hai.config.schema import LossConfig, ModelConfig
from hai.losses import DetectorLoss
from hai.models import backbone_parameters, build_model
from hai.models.dual_branch import DualBranch, DualBranchV2, half_spectrum, spectra

FIRST = ModelConfig(name="dual_branch", pretrained=False)
SECOND = ModelConfig(name="dual_branch_v2", pretrained=False)


def num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def num_gigaflops(module: nn.Module, image: Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(image)
    return counter.get_total_flops() / 1e9


@pytest.fixture(scope="module")
def first() -> DualBranch:
    model = build_model(FIRST, 224, seed=0)
    assert isinstance(model, DualBranch)
    return model


@pytest.fixture(scope="module")
def second() -> DualBranchV2:
    model = build_model(SECOND, 224, seed=0)
    assert isinstance(model, DualBranchV2)
    return model


def test_the_guides_model_has_its_parameters(first: DualBranch) -> None:
    assert num_parameters(first.spatial) == 31_364_936
    assert num_parameters(first.frequency) == 6_796_032
    assert num_parameters(first.fusion) == 5_252_608
    assert num_parameters(first.classifier) == 262_914
    assert num_parameters(first) == 43_676_490


def test_the_backbone_is_efficientnet(first: DualBranch, second: DualBranchV2) -> None:
    for model in (first, second):
        sizes = {name: p.numel() for name, p in model.named_parameters()}
        assert sum(sizes[name] for name in backbone_parameters(model)) == 17_548_616


def test_both_return_two_logits(first: DualBranch, second: DualBranchV2) -> None:
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for model in (first.eval(), second.eval()):
            logits = model(image)
            assert logits.shape == (1, 2)
            assert logits.isfinite().all()


def test_the_first_models_queries_and_keys_never_learn() -> None:
    fusion = build_model(FIRST, 64, seed=0).fusion
    fusion(torch.randn(4, 1024)).square().sum().backward()
    gradient = fusion.attention.in_proj_weight.grad
    assert gradient[:2048].abs().max() < 1e-6 * gradient[2048:].abs().max()  # rounding, where theory says 0


def test_every_parameter_of_the_second_model_learns() -> None:
    model = build_model(SECOND, 64, seed=0)
    logits = model(torch.randn(4, 3, 64, 64))
    assert logits.shape == (4, 3, 2)
    DetectorLoss(LossConfig(), (2, 2))(logits, torch.tensor([0, 1, 0, 1]), epoch=0).backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


def test_the_second_models_frequencies_cost_little(first: DualBranch, second: DualBranchV2) -> None:
    image = torch.randn(1, 3, 224, 224)
    old, new = num_gigaflops(first.frequency, image), num_gigaflops(second.frequency, image)
    assert new < 1 < old


def test_spectra_are_those_of_numpy() -> None:
    image = torch.randn(1, 3, 8, 6)
    expected = torch.fft.fftshift(torch.fft.fft2(image.double()), dim=(-2, -1))
    result = spectra(image)
    torch.testing.assert_close(result[:, :3], (expected.abs() + 1e-8).log().float(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(result[:, 3:].cos(), expected.angle().cos().float(), rtol=1e-3, atol=1e-3)


def test_spectra_stay_in_fp32_under_autocast() -> None:
    image = torch.randn(1, 3, 32, 32).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert spectra(image).dtype == torch.float32
        assert half_spectrum(image).dtype == torch.float32


def test_half_spectrum_shows_a_wave_where_it_is() -> None:
    column = torch.arange(64)
    image = torch.cos(2 * torch.pi * 16 * column / 64).expand(1, 3, 64, 64)
    result = half_spectrum(image)
    assert result.shape == (1, 1, 64, 33)
    assert divmod(int(result.argmax()), 33) == (32, 16)


def test_half_spectrum_ignores_exposure_and_contrast() -> None:
    image = torch.randn(2, 3, 64, 64)
    spectrum = half_spectrum(image)
    torch.testing.assert_close(spectrum.mean(dim=(1, 2, 3)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(half_spectrum(3 * image + 5), spectrum, atol=0.1, rtol=0)
    assert half_spectrum(torch.zeros(1, 3, 64, 64)).abs().max() == 0


def test_options_reach_the_parts() -> None:
    config = SECOND.model_copy(update={"dropout": 0.125, "drop_path": 0.25, "gradient_checkpointing": True})
    model = build_model(config, 64, seed=0)
    assert isinstance(model, DualBranchV2)
    assert [m.p for m in model.classifier.modules() if isinstance(m, nn.Dropout)] == [0.125]
    assert model.spatial.backbone.grad_checkpointing is True
    rates = [m.drop_prob for m in model.spatial.backbone.modules() if type(m).__name__ == "DropPath"]
    assert 0.2 < max(rates) < 0.25
