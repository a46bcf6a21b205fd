"""The ranker's objectives against loops over pairs that anybody can read."""

from __future__ import annotations

import math
from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from hai.config.schema import PairsConfig
from hai.errors import ConfigError
from hai.pair_losses import PairLoss, pair_statistics

NUM_TIERS = 4


def batch_of(size: int, seed: int = 0) -> dict[str, Tensor]:
    rng = np.random.default_rng(seed)
    label = torch.from_numpy(rng.integers(0, NUM_TIERS, size))
    return {"label": label, "index": torch.from_numpy(rng.permutation(1000)[:size])}


def outputs_of(size: int, width: int = 1, heads: int = 1, seed: int = 1) -> Tensor:
    outputs = torch.randn(size, heads, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return outputs.float().requires_grad_()


def number(loss: Tensor) -> float:
    return float(loss.detach())


def loss_of(outputs: Tensor, batch: dict[str, Tensor], epoch: int = 0, seed: int = 7, **config: object) -> Tensor:
    return PairLoss(PairsConfig(**config), NUM_TIERS, seed)(outputs, batch, epoch=epoch)  # type: ignore[arg-type]


def better_pairs(label: Tensor) -> list[tuple[int, int]]:
    return [(i, j) for i, j in permutations(range(len(label)), 2) if label[i] < label[j]]


def test_margin_is_the_library_s_ranking_loss_over_all_pairs() -> None:
    batch, outputs = batch_of(11), outputs_of(11)
    score = outputs[:, 0, 0]
    pairs = better_pairs(batch["label"])
    left, right = torch.tensor(pairs).T
    known = torch.nn.functional.margin_ranking_loss(score[left], score[right], torch.ones(len(pairs)), margin=1.0)
    loss = loss_of(outputs, batch, loss="margin", margin=1.0)
    torch.testing.assert_close(loss, known)
    (own,) = torch.autograd.grad(loss, outputs, retain_graph=True)
    (expected,) = torch.autograd.grad(known, outputs)
    torch.testing.assert_close(own, expected)


def test_bradley_terry_is_the_mean_log_loss_of_the_better_one() -> None:
    batch, outputs = batch_of(9), outputs_of(9)
    score = outputs.detach().flatten().tolist()
    terms = [-math.log(1 / (1 + math.exp(score[j] - score[i]))) for i, j in better_pairs(batch["label"])]
    assert number(loss_of(outputs, batch)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_ties_follow_rao_and_kupper() -> None:
    batch, outputs = batch_of(9), outputs_of(9, width=2)
    eta = 0.4
    outputs = torch.stack([outputs[..., 0], torch.full((9, 1), eta)], dim=-1)
    theta, strength = math.exp(eta), [math.exp(value) for value in outputs[:, 0, 0].tolist()]
    terms = []
    for i, j in combinations(range(9), 2):
        p, q = strength[i], strength[j]
        win, lose = p / (p + theta * q), q / (q + theta * p)
        draw = (theta**2 - 1) * p * q / ((p + theta * q) * (theta * p + q))
        assert win + lose + draw == pytest.approx(1)
        a, b = batch["label"][i], batch["label"][j]
        terms.append(-math.log(draw if a == b else win if a < b else lose))
    assert number(loss_of(outputs, batch, ties=True)) == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_an_image_never_ties_with_itself() -> None:
    batch = {"label": torch.tensor([1, 1, 2]), "index": torch.tensor([5, 5, 6])}
    outputs = torch.stack([torch.tensor([[3.0], [3.0], [0.0]]), torch.full((3, 1), 0.2)], dim=-1)
    once = {"label": torch.tensor([1, 2]), "index": torch.tensor([5, 6])}
    torch.testing.assert_close(loss_of(outputs, batch, ties=True), loss_of(outputs[1:], once, ties=True))


def test_coral_is_binary_cross_entropy_per_border() -> None:
    batch, outputs = batch_of(8), outputs_of(8, width=NUM_TIERS - 1)
    total = 0.0
    for logits, code in zip(outputs.detach()[:, 0].tolist(), batch["label"].tolist(), strict=True):
        for k, logit in enumerate(logits):
            probability = 1 / (1 + math.exp(-logit))
            total -= math.log(probability if code <= k else 1 - probability)
    assert number(loss_of(outputs, batch, loss="coral")) == pytest.approx(total / 8, rel=1e-5)
    assert not PairLoss(PairsConfig(loss="coral"), NUM_TIERS, 0).needs_global_batch
    assert PairLoss(PairsConfig(), NUM_TIERS, 0).needs_global_batch


def test_shares_of_gaps_weigh_pairs_as_sampling_by_quota_would() -> None:
    batch, outputs = batch_of(30), outputs_of(30)
    shares, by_gap = [0.5, 0.3, 0.2], dict[int, list[float]]()
    score, label = outputs.detach().flatten(), batch["label"]
    for i, j in better_pairs(label):
        by_gap.setdefault(int(label[j] - label[i]), []).append(math.log1p(math.exp(number(score[j] - score[i]))))
    expected = sum(share * np.mean(by_gap[gap + 1]) for gap, share in enumerate(shares))
    assert number(loss_of(outputs, batch, gap_shares=shares)) == pytest.approx(float(expected), rel=1e-5)
    two = {"label": label[label < 2], "index": batch["index"][label < 2]}  # only one gap is left: it takes everything
    part = outputs[label < 2]
    torch.testing.assert_close(loss_of(part, two, gap_shares=shares), loss_of(part, two))


@pytest.mark.parametrize("ties", [False, True])
def test_no_image_is_in_more_pairs_than_its_cap(ties: bool) -> None:
    size, most = 24, 3
    batch, outputs = batch_of(size), outputs_of(size, width=2 if ties else 1)
    partners = []
    for i in range(size):  # an image's score moves the loss through its own pairs alone
        (slope,) = torch.autograd.grad(
            torch.autograd.grad(loss_of(outputs, batch, ties=ties, max_per_image=most), outputs, create_graph=True)[0][
                i, 0, 0
            ],
            outputs,
        )
        partners.append(set(torch.nonzero(slope[:, 0, 0]).flatten().tolist()) - {i})
    assert all(len(mine) <= most for mine in partners)
    assert sum(map(len, partners)) >= size  # and many pairs are left
    assert all(i in partners[j] for i in range(size) for j in partners[i])


def test_the_capped_pairs_depend_on_images_and_epoch_alone() -> None:
    batch, outputs = batch_of(20), outputs_of(20)
    order = torch.from_numpy(np.random.default_rng(3).permutation(20))
    moved = {name: values[order] for name, values in batch.items()}
    first = loss_of(outputs, batch, max_per_image=2)
    torch.testing.assert_close(loss_of(outputs[order], moved, max_per_image=2), first)
    assert number(loss_of(outputs, batch, epoch=1, max_per_image=2)) != pytest.approx(number(first))
    torch.testing.assert_close(loss_of(outputs, batch, max_per_image=100), loss_of(outputs, batch))


def test_heads_see_draws_of_the_images() -> None:
    batch, outputs = batch_of(40), outputs_of(40).detach().expand(40, 3, 1)
    one = [loss_of(outputs[:, :1], batch, seed=seed) for seed in (1, 2)]
    assert one[0] == one[1]  # a single head sees all images once
    many = [loss_of(outputs, batch, seed=seed) for seed in (1, 2)]
    assert many[0] != many[1]
    loss = PairLoss(PairsConfig(), NUM_TIERS, 1)
    weights = loss._bag(torch.arange(20_000), 2)
    assert weights is not None
    counts = torch.bincount(weights.flatten().long()) / weights.numel()
    expected = [math.exp(-1) / math.factorial(k) for k in range(4)]
    np.testing.assert_allclose(counts[:4], expected, atol=0.01)
    assert abs(float(torch.corrcoef(weights.T)[0, 1])) < 0.03


def test_comparisons() -> None:
    preference = torch.tensor([1, -1, 0, 1])
    batch = {"label": preference, "index": torch.tensor([[0, 1], [2, 3], [4, 5], [6, 7]])}
    outputs = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(2))
    lead = [float(a - b) * p for (a, b), p in zip(outputs[:, :, 0, 0], preference.tolist(), strict=True)]
    expected = sum(math.log1p(math.exp(-value)) for value, p in zip(lead, preference, strict=True) if p) / 4
    assert number(loss_of(outputs, batch)) == pytest.approx(expected, rel=1e-5)
    swapped = {"label": -preference, "index": batch["index"].flip(1)}
    torch.testing.assert_close(loss_of(outputs.flip(1), swapped), loss_of(outputs, batch))
    tied = torch.cat([outputs, torch.full_like(outputs, 0.3)], dim=-1)
    assert number(loss_of(tied, batch, ties=True)) > expected  # the tie counts too


def test_without_a_pair_the_loss_is_nothing_but_has_a_graph() -> None:
    outputs = outputs_of(5)
    loss = loss_of(outputs, {"label": torch.ones(5, dtype=torch.int64), "index": torch.arange(5)})
    loss.backward()
    assert number(loss) == 0
    assert outputs.grad is not None
    assert not outputs.grad.any()


@pytest.mark.parametrize("config", [{}, {"ties": True}, {"loss": "margin"}])
def test_far_scores_stay_finite(config: dict[str, object]) -> None:
    batch = batch_of(12)
    outputs = (1e4 * outputs_of(12, width=2).detach()).half().abs().requires_grad_()
    loss = loss_of(outputs, batch, **config)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)
    assert outputs.grad is not None
    assert torch.isfinite(outputs.grad).all()


def test_training_counts() -> None:
    score, label = torch.tensor([3.0, 1.0, 1.0, 2.0]), torch.tensor([0, 1, 2, 2])
    assert pair_statistics(score, label).tolist() == [3, 5]  # equal scores and the last pair are wrong
    sides = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    assert pair_statistics(sides, torch.tensor([1, -1, 0, 1])).tolist() == [1, 3]


def test_shares_must_fit_the_tiers() -> None:
    with pytest.raises(ConfigError, match=r"pairs.gap_shares = \[0.5, 0.5\]; must have 3 entries"):
        PairLoss(PairsConfig(gap_shares=[0.5, 0.5]), NUM_TIERS, 0)
