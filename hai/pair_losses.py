"""The ranker's objectives: over all valid pairs of a batch of graded images, or over given comparisons."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from hai.config.schema import PairsConfig
from hai.data.device_draws import hash_keys, uniform
from hai.errors import ConfigError
from hai.types import Batch

__all__ = ["PairLoss", "pair_statistics"]

_CAP, _BAG = 0x43415053, 0x42414753
"""Keys that keep these draws apart from all others of the same seed."""

_POISSON = (0.36787944, 0.73575888, 0.91969860, 0.98101184, 0.99634015, 0.99940582, 0.99991676)
"""Distribution function of a Poisson variable of mean 1, at 0, 1, ..."""

_NO_PAIR = torch.iinfo(torch.int64).max


class PairLoss:
    """The loss of a global batch; the mean over the model's heads.

    Graded images: outputs [B, H, O], `label` the tier codes [B], 0 the best. All pairs of images of different tiers
    count, each once; `ties` adds pairs of one tier as draws. Comparisons: outputs [B, 2, H, O], `label` the preference
    [B]: 1 left, -1 right, 0 a tie, which counts with `ties` only. `index`, [B] or [B, 2], names the images.

    - margin: max(0, margin - d), d the better image's score minus the other's.
    - bradley_terry: -log sigmoid(d). Source: Bradley and Terry, Rank analysis of incomplete block designs, 1952.
    - bradley_terry with ties: P(win) = sigmoid(d - e), P(draw) = (exp(2 e) - 1) sigmoid(d - e) sigmoid(-d - e), e > 0
      learned, the second output. Source: Rao and Kupper, Ties in paired-comparison experiments, 1967.
    - coral: binary cross-entropy of output k, the logit that the tier code is <= k, summed over the K - 1 thresholds,
      mean over images. Source: Cao, Mirjalili and Raschka, Rank consistent ordinal regression, 2020.

    With several heads each sees its own draw of the images, with Poisson(1) weights that are a function of (seed, head,
    image): online bagging (Oza and Russell, 2001), so that their spread says how much the data leave open.

    Args:
        config: the objective.
        num_tiers: K.
        seed: of the draws.

    Raises:
        ConfigError: `gap_shares` does not have K - 1 entries.
    """

    def __init__(self, config: PairsConfig, num_tiers: int, seed: int) -> None:
        self._config, self._seed = config, seed
        shares = config.gap_shares
        if shares is not None and len(shares) != num_tiers - 1:
            raise ConfigError(
                f"pairs.gap_shares = {shares}; must have {num_tiers - 1} entries, one for each distance between "
                f"{num_tiers} tiers"
            )
        self.needs_global_batch = config.loss != "coral"

    def __call__(self, outputs: Tensor, batch: Batch, *, epoch: int) -> Tensor:
        """Return the loss, a scalar; 0 with a graph where no pair counts."""
        outputs = outputs.float()
        if outputs.dim() == 4:
            return self._of_comparisons(outputs, batch)
        if self._config.loss == "coral":
            return self._ordinal(outputs, batch)
        return self._of_pairs(outputs, batch, epoch)

    def _of_pairs(self, outputs: Tensor, batch: Batch, epoch: int) -> Tensor:
        label, index = batch["label"], batch["index"]
        score = outputs[..., 0]
        gap = label[None, :] - label[:, None]  # of row against column: > 0 where the row's image is better
        wins = gap > 0
        draws = torch.zeros_like(wins)
        if self._config.ties:
            draws = ((gap == 0) & (index[:, None] != index[None, :])).triu(1)
        if self._config.max_per_image is not None:
            kept = self._capped(wins | wins.T | draws | draws.T, index, epoch)
            wins, draws = wins & kept, draws & kept
        weight = (self._shared(gap, wins) + draws.float())[..., None]
        bag = self._bag(index, outputs.shape[1])
        if bag is not None:
            weight = weight * bag[:, None] * bag[None, :]
        difference = score[:, None] - score[None, :]
        loss = self._of_wins(difference, outputs)
        if self._config.ties:
            loss = torch.where(draws[..., None], self._of_draws(difference, outputs), loss)
        total = weight.sum(dim=(0, 1))
        loss = torch.where(weight > 0, loss, 0.0)  # a pair that does not count may be infinite
        per_head = (weight * loss).sum(dim=(0, 1)) / total.clamp(min=1e-30)
        return per_head.mean() + 0.0 * outputs.sum()

    def _of_comparisons(self, outputs: Tensor, batch: Batch) -> Tensor:
        preference, index = batch["label"], batch["index"]
        difference = outputs[:, 0, :, 0] - outputs[:, 1, :, 0]
        loss = self._of_wins(difference * preference[:, None], outputs)
        decided = (preference != 0)[:, None]
        others = self._of_draws(difference, outputs) if self._config.ties else torch.zeros_like(loss)
        loss = torch.where(decided, loss, others)
        bag = self._bag(hash_keys(index[:, 0], index[:, 1]), outputs.shape[2])
        return (loss if bag is None else loss * bag).mean()

    def _ordinal(self, outputs: Tensor, batch: Batch) -> Tensor:
        steps = torch.arange(outputs.shape[-1], device=outputs.device)
        target = (batch["label"][:, None] <= steps).float()[:, None].expand_as(outputs)
        loss = F.binary_cross_entropy_with_logits(outputs, target, reduction="none").sum(dim=-1)
        bag = self._bag(batch["index"], outputs.shape[1])
        return (loss if bag is None else loss * bag).mean()

    def _of_wins(self, difference: Tensor, outputs: Tensor) -> Tensor:
        if self._config.loss == "margin":
            return F.relu(self._config.margin - difference)
        if not self._config.ties:
            return F.softplus(-difference)
        return F.softplus(_tie(outputs) - difference)

    @staticmethod
    def _of_draws(difference: Tensor, outputs: Tensor) -> Tensor:
        tie = _tie(outputs)
        odds = 2 * tie + torch.log(-torch.expm1(-2 * tie))
        return F.softplus(tie - difference) + F.softplus(tie + difference) - odds

    def _shared(self, gap: Tensor, wins: Tensor) -> Tensor:
        """Weigh pairs [B, B]; with `gap_shares` each distance has its share of their number: sampling without noise."""
        weight = wins.float()
        shares = self._config.gap_shares
        if shares is None:
            return weight
        counts = torch.stack([(wins & (gap == distance)).sum() for distance in range(1, len(shares) + 1)]).float()
        wanted = torch.where(counts > 0, _constant(tuple(shares), gap.device), 0.0)
        each = wanted / counts.clamp(min=1) * counts.sum() / wanted.sum().clamp(min=1e-30)
        return weight * each[(gap - 1).clamp(0, len(shares) - 1)]

    def _capped(self, valid: Tensor, index: Tensor, epoch: int) -> Tensor:
        """Keep a pair if its draw is among the smallest `max_per_image` of both its images: [B, B], symmetric."""
        most = min(self._config.max_per_image or len(index), len(index))
        low, high = torch.minimum(index[:, None], index[None, :]), torch.maximum(index[:, None], index[None, :])
        drawn = hash_keys(self._seed, _CAP, epoch, low, high)
        drawn = torch.where(valid, drawn, _NO_PAIR)
        limit = drawn.kthvalue(most, dim=1).values
        return valid & (drawn <= limit[:, None]) & (drawn <= limit[None, :])

    def _bag(self, key: Tensor, heads: int) -> Tensor | None:
        """Draw Poisson(1) weights [B, H]; None: one head sees everything once."""
        if heads == 1:
            return None
        head = torch.arange(heads, device=key.device)
        drawn = uniform(self._seed, _BAG, head[None, :], key[:, None])
        return torch.bucketize(drawn, _constant(_POISSON, key.device), right=True).float()


@functools.cache
def _constant(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return constants on a device; a copy at every step would wait for it."""
    return torch.tensor(values, device=device)


def _tie(outputs: Tensor) -> Tensor:
    """Return the tie parameter of each head [H], which the model repeats for every example."""
    return outputs[..., 1].flatten(0, -2).mean(dim=0)


def pair_statistics(score: Tensor, label: Tensor) -> Tensor:
    """Count correctly ordered pairs and pairs, float64 [2]; equal scores are wrong.

    Args:
        score: [B] of graded images, or [B, 2] of comparisons.
        label: tier codes [B], or preferences [B].
    """
    if score.dim() == 2:
        decided = label != 0
        correct = decided & (((score[:, 0] - score[:, 1]) * label) > 0)
        return torch.stack([correct.sum(), decided.sum()]).double()
    wins = label[:, None] < label[None, :]
    correct = wins & (score[:, None] > score[None, :])
    return torch.stack([correct.sum(), wins.sum()]).double()
