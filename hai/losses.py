"""The detector's objective: cross-entropy, focal loss and a differentiable macro-F1, weighted by epoch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hai.config.schema import LossConfig, LossPhase
from hai.errors import DataError
from hai.types import LABELS

__all__ = ["AUXILIARY_WEIGHT", "DetectorLoss", "class_weights", "cross_entropy", "focal_loss", "soft_f1_loss"]

AUXILIARY_WEIGHT = 0.3
"""Weight of each auxiliary classifier of a model that has some, where the main one has 1; the weights sum to 1."""


def cross_entropy(logits: Tensor, label: Tensor, weights: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean weighted cross-entropy.

    Unlike torch's, the mean is over examples, not over weights, and a smoothed example has the weight of its own class:
    so the loss of a batch is the mean of its parts' losses however it is cut.

    Args:
        logits: [B, 2].
        label: int64 [B].
        weights: [2], of real and fake.
        smoothing: share of the target spread over both classes.

    Source: smoothing: Szegedy et al., Rethinking the Inception Architecture, 2016, section 7.
    """
    terms = F.cross_entropy(logits.float(), label, reduction="none", label_smoothing=smoothing)
    return (weights[label] * terms).mean()


def focal_loss(logits: Tensor, label: Tensor, weights: Tensor, gamma: float, alpha: float | None) -> Tensor:
    """Return the mean of alpha_t (1 - p_t)^gamma CE, t the true class, times the class weight.

    Args:
        logits: [B, 2].
        label: int64 [B].
        weights: [2], of real and fake.
        gamma: how much examples that are already right count less.
        alpha: alpha_t of fake, 1 - alpha that of real; None: 1 for both.

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017, equation 5.
    """
    logarithm = F.log_softmax(logits.float(), dim=1)
    true = logarithm.gather(1, label[:, None]).squeeze(1)
    other = logarithm.gather(1, 1 - label[:, None]).squeeze(1)
    factor = torch.exp(gamma * other)  # (1 - p_t)^gamma, whose gradient as a power is infinite at p_t = 1, gamma < 1
    if alpha is not None:
        factor = factor * torch.where(label == 1, alpha, 1 - alpha)
    return -(weights[label] * factor * true).mean()


def soft_f1_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Return 1 - mean over classes of F1 with probabilities for predictions, over the classes in the batch.

    F1_c = 2 tp_c / (sum p_c + n_c) with tp_c = sum of p_c over the examples of class c and n_c their number. Computed
    in fp32. The loss of a batch is not the mean of its parts' losses.

    Args:
        logits: [B, 2].
        label: int64 [B].

    Source: Bénédict et al., sigmoidF1: A Smooth F1 Score Surrogate Loss, 2021, without their sigmoid's parameters.
    """
    probability = logits.float().softmax(dim=1)
    target = F.one_hot(label, 2).to(probability.dtype)
    count = target.sum(dim=0)
    f1 = 2 * (probability * target).sum(dim=0) / (probability.sum(dim=0) + count).clamp_min(1e-8)
    present = count > 0
    return 1 - (f1 * present).sum() / present.sum()


def class_weights(config: LossConfig, class_counts: Sequence[int]) -> tuple[float, float]:
    """Return the weights of real and fake, scaled so that their mean over the training split is 1.

    Args:
        config: the loss's section of the config.
        class_counts: training examples of real and fake.

    Raises:
        DataError: balanced weights for a split without one of the classes.
    """
    real, fake = class_counts
    if config.class_weights is None:
        return 1.0, 1.0
    if config.class_weights == "balanced":
        for name, count in zip(LABELS, class_counts, strict=True):
            if count == 0:
                raise DataError(
                    f"loss.class_weights = balanced; the training split has no {name} images; "
                    "add some, or set it to null"
                )
        raw = (1 / real, 1 / fake)
    else:
        raw = (config.class_weights[0], config.class_weights[1])
    scale = (real + fake) / (real * raw[0] + fake * raw[1])
    return raw[0] * scale, raw[1] * scale


class DetectorLoss:
    """The weighted sum in force at an epoch, over a global batch.

    Args:
        config: the loss's section of the config.
        class_counts: training examples of real and fake.
    """

    def __init__(self, config: LossConfig, class_counts: Sequence[int]) -> None:
        self._config = config
        self._weights = torch.tensor(class_weights(config, class_counts))

    def phase_at(self, epoch: int) -> LossConfig | LossPhase:
        """Return the last phase whose first epoch has come, or the config itself before all phases."""
        phases = [phase for phase in self._config.phases if phase.from_epoch <= epoch]
        return phases[-1] if phases else self._config

    def needs_global_batch(self, epoch: int) -> bool:
        """Say whether the loss of a batch is not the mean of its parts' losses."""
        return self.phase_at(epoch).soft_f1 > 0

    def __call__(self, logits: Tensor, label: Tensor, epoch: int) -> Tensor:
        """Return the loss, a scalar.

        Args:
            logits: [B, 2], or [B, K, 2] of a main classifier and K - 1 auxiliary ones (see `AUXILIARY_WEIGHT`).
            label: int64 [B].
            epoch: counted from 0; decides the weights.
        """
        self._weights = self._weights.to(logits.device)  # once: a copy at every step would wait for the device
        if logits.ndim == 2:
            return self._single(logits, label, epoch)
        main, *others = (self._single(part, label, epoch) for part in logits.unbind(dim=1))
        total = main + AUXILIARY_WEIGHT * sum(others, torch.zeros_like(main))
        return total / (1 + AUXILIARY_WEIGHT * len(others))

    def _single(self, logits: Tensor, label: Tensor, epoch: int) -> Tensor:
        config, phase = self._config, self.phase_at(epoch)
        weights = self._weights
        loss = logits.new_zeros((), dtype=torch.float32)
        if phase.cross_entropy:
            loss = loss + phase.cross_entropy * cross_entropy(logits, label, weights, config.label_smoothing)
        if phase.focal:
            loss = loss + phase.focal * focal_loss(logits, label, weights, config.focal_gamma, config.focal_alpha)
        if phase.soft_f1:
            loss = loss + phase.soft_f1 * soft_f1_loss(logits, label)
        return loss
