"""The detector's objective, against loops over its definitions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from hai.config.schema import LossConfig, LossPhase
from hai.errors import DataError
from hai.losses import AUXILIARY_WEIGHT, DetectorLoss, class_weights, cross_entropy, focal_loss, soft_f1_loss

ONES = torch.ones(2)


def batch(size: int = 13) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 2 * torch.randn(size, 2, generator=generator)
    return logits, torch.randint(0, 2, (size,), generator=generator)


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value) for value in row]
    return [value / sum(powers) for value in powers]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy(smoothing: float) -> None:
    logits, label = batch()
    weights = [0.5, 1.75]
    terms = []
    for row, true in zip(logits.tolist(), label.tolist(), strict=True):
        p = softmax(row)
        target = [smoothing / 2, smoothing / 2]
        target[true] += 1 - smoothing
        terms.append(weights[true] * -sum(t * math.log(q) for t, q in zip(target, p, strict=True)))
    result = cross_entropy(logits, label, torch.tensor(weights), smoothing)
    assert result.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_loss(gamma: float, alpha: float | None) -> None:
    logits, label = batch()
    weights = [0.5, 1.75]
    terms = []
    for row, true in zip(logits.tolist(), label.tolist(), strict=True):
        p = softmax(row)[true]
        share = 1.0 if alpha is None else (1 - alpha, alpha)[true]
        terms.append(weights[true] * share * (1 - p) ** gamma * -math.log(p))
    result = focal_loss(logits, label, torch.tensor(weights), gamma, alpha)
    assert result.item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_alpha_025_weighs_fakes_three_times_less() -> None:
    logits = torch.zeros(1, 2)
    fake, real = (focal_loss(logits, torch.tensor([c]), ONES, 2.0, 0.25) for c in (1, 0))
    assert real.item() == pytest.approx(3 * fake.item())


def test_focal_loss_stays_finite_where_the_model_is_certain() -> None:
    logits = torch.tensor([[200.0, -200.0], [200.0, -200.0]], requires_grad=True)
    focal_loss(logits, torch.tensor([0, 1]), ONES, 0.5, None).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("labels", ["both", "only real", "only fake"])
def test_soft_f1(labels: str) -> None:
    logits, label = batch()
    if labels != "both":
        label = torch.full_like(label, int(labels == "only fake"))
    scores = []
    for c in (0, 1):
        count = sum(true == c for true in label.tolist())
        if count:
            p = [softmax(row)[c] for row in logits.tolist()]
            tp = sum(q for q, true in zip(p, label.tolist(), strict=True) if true == c)
            scores.append(2 * tp / (sum(p) + count))
    assert soft_f1_loss(logits, label).item() == pytest.approx(1 - sum(scores) / len(scores), rel=1e-5)


def test_soft_f1_is_that_of_hard_predictions_when_they_are_certain() -> None:
    from sklearn.metrics import f1_score

    logits, label = batch(50)
    hard = soft_f1_loss(1e4 * logits, label).item()
    assert 1 - hard == pytest.approx(f1_score(label, logits.argmax(dim=1), average="macro"), abs=1e-6)


@pytest.mark.parametrize("loss", ["cross_entropy", "focal", "soft_f1"])
def test_gradients_are_those_of_finite_differences(loss: str) -> None:
    logits, label = batch(5)
    objective = DetectorLoss(LossConfig(**{"cross_entropy": 0.0, loss: 1.0}, focal_alpha=0.25), (3, 5))
    given = logits.clone().requires_grad_()
    objective(given, label, 0).backward()
    assert given.grad is not None
    for i in range(5):
        for c in range(2):
            moved = [logits.clone(), logits.clone()]
            moved[0][i, c] += 1e-2
            moved[1][i, c] -= 1e-2
            slope = (objective(moved[0], label, 0) - objective(moved[1], label, 0)) / 2e-2
            assert given.grad[i, c].item() == pytest.approx(slope.item(), abs=1e-4)


def test_half_precision_logits_give_fp32_losses() -> None:
    logits, label = batch()
    objective = DetectorLoss(LossConfig(cross_entropy=0.5, focal=0.3, soft_f1=0.2), (1, 1))
    result = objective(logits.bfloat16(), label, 0)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, objective(logits.bfloat16().float(), label, 0), rtol=0, atol=0)


def test_weights_have_mean_one_over_the_training_split() -> None:
    balanced = class_weights(LossConfig(class_weights="balanced"), (300, 100))
    assert balanced == pytest.approx((400 / 600, 400 / 200))
    given = class_weights(LossConfig(class_weights=[1.0, 2.0]), (300, 100))
    assert given[1] / given[0] == pytest.approx(2)
    assert (300 * given[0] + 100 * given[1]) / 400 == pytest.approx(1)
    assert class_weights(LossConfig(), (300, 0)) == (1.0, 1.0)
    with pytest.raises(DataError, match=r"loss\.class_weights = balanced; the training split has no fake images"):
        class_weights(LossConfig(class_weights="balanced"), (300, 0))


def test_the_sum_is_weighted_and_changes_by_epoch() -> None:
    logits, label = batch()
    config = LossConfig(
        cross_entropy=0.5,
        focal=0.3,
        focal_alpha=0.25,
        phases=[LossPhase(from_epoch=2, focal=1.0), LossPhase(from_epoch=80, cross_entropy=0.4, soft_f1=0.6)],
    )
    objective = DetectorLoss(config, (1, 1))
    ce, focal = cross_entropy(logits, label, ONES), focal_loss(logits, label, ONES, 2.0, 0.25)
    f1 = soft_f1_loss(logits, label)
    expected = {0: 0.5 * ce + 0.3 * focal, 1: 0.5 * ce + 0.3 * focal, 2: focal, 79: focal, 80: 0.4 * ce + 0.6 * f1}
    for epoch, value in expected.items():
        torch.testing.assert_close(objective(logits, label, epoch), value)
    assert [objective.needs_global_batch(epoch) for epoch in (0, 2, 79, 80, 99)] == [False, False, False, True, True]


def test_what_needs_no_global_batch_falls_apart_into_parts() -> None:
    logits, label = batch(12)
    config = LossConfig(cross_entropy=0.6, focal=0.4, focal_alpha=0.25, class_weights="balanced", label_smoothing=0.1)
    objective = DetectorLoss(config, (30, 10))
    whole, parts = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = objective(whole, label, 0)
    loss.backward()
    pieces = [objective(parts[cut], label[cut], 0) for cut in (slice(0, 1), slice(1, 4), slice(4, 12))]
    total = (1 * pieces[0] + 3 * pieces[1] + 8 * pieces[2]) / 12
    total.backward()
    torch.testing.assert_close(total, loss)
    torch.testing.assert_close(parts.grad, whole.grad)


def test_soft_f1_does_not() -> None:
    logits, label = batch(12)
    objective = DetectorLoss(LossConfig(cross_entropy=0.0, soft_f1=1.0), (1, 1))
    halves = (objective(logits[:6], label[:6], 0) + objective(logits[6:], label[6:], 0)) / 2
    assert abs(halves - objective(logits, label, 0)) > 1e-3


def test_auxiliary_classifiers_count_less() -> None:
    logits, label = batch(12)
    objective = DetectorLoss(LossConfig(cross_entropy=0.5, soft_f1=0.5), (1, 1))
    parts = [logits, logits.flip(0), logits.flip(1)]
    main, *others = (objective(part, label, 0) for part in parts)
    expected = (main + AUXILIARY_WEIGHT * sum(others)) / (1 + 2 * AUXILIARY_WEIGHT)
    torch.testing.assert_close(objective(torch.stack(parts, dim=1), label, 0), expected)
    torch.testing.assert_close(objective(torch.stack([logits] * 3, dim=1), label, 0), main)
