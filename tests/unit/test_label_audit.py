import numpy as np
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from hai.errors import DataError
from hai.label_audit import _ridge, audit_labels, out_of_fold_scores
from hai.score_scale import Scale

SCALE = Scale(temperature=1.0, center=0.0, thresholds=(3.0, 0.0, -3.0))


def test_findings_are_two_tiers_off_or_clearly_beyond_the_border() -> None:
    score = np.array([4.0, 2.0, 0.7, -1.0, -9.0, 5.5, 4.0, 3.1])
    tier = np.array([0, 0, 0, 0, 0, 1, 1, 3])
    found = audit_labels(score, tier, SCALE)
    assert {finding.row: finding.suggested for finding in found} == {4: 3, 7: 0, 3: 2, 5: 0, 2: 1}
    strength = {finding.row: finding.strength for finding in found}
    assert strength[4] == pytest.approx(1 / (1 + np.exp(-12)))
    assert strength[7] == pytest.approx(1 / (1 + np.exp(-6.1))), "from the upper border of the worst tier"
    assert strength[2] == pytest.approx(1 / (1 + np.exp(-2.3)))
    assert [finding.row for finding in found] == sorted(strength, key=lambda row: -strength[row])


def planted(seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """200 images in 50 groups, whose features tell the tier, and one with a wrong tier."""
    rng = np.random.default_rng(seed)
    tier = np.repeat(rng.integers(0, 4, 50), 4)
    embeddings = rng.normal(size=(200, 16)).astype(np.float32)
    embeddings[:, 0] += 2 * tier
    tier[7] = 3 - tier[7]
    return embeddings, tier, [f"g{i // 4}" for i in range(200)]


def test_planted_wrong_label_is_found() -> None:
    embeddings, tier, group = planted()
    score = out_of_fold_scores(embeddings, tier, group)
    assert np.argmax(np.abs(score + tier)) == 7
    assert np.corrcoef(score, -tier)[0, 1] > 0.8
    assert (out_of_fold_scores(embeddings, tier, group) == score).all()
    assert (out_of_fold_scores(embeddings, tier, group, seed=1) != score).any()


def test_no_score_depends_on_the_labels_of_its_own_group() -> None:
    embeddings, tier, group = planted()
    score = out_of_fold_scores(embeddings, tier, group)
    changed = tier.copy()
    changed[4:8] = 3 - changed[4:8]
    again = out_of_fold_scores(embeddings, changed, group)
    np.testing.assert_allclose(again[4:8], score[4:8], rtol=0, atol=1e-12)
    assert not np.allclose(again[8:], score[8:], atol=1e-12)


def test_few_groups() -> None:
    embeddings = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    tier = np.array([0, 1, 2, 0, 1, 2])
    assert np.isfinite(out_of_fold_scores(embeddings[:5], tier[:5], [""] * 5)).all()
    with pytest.raises(DataError, match="groups = 4; out-of-fold scores need 5 or more"):
        out_of_fold_scores(embeddings, tier, ["a", "a", "a", "b", "c", ""])


@pytest.mark.parametrize("width", [40, 300])
def test_ridge_is_that_of_scikit_learn(width: int) -> None:
    rng = np.random.default_rng(0)
    known, asked = rng.normal(size=(200, width)).astype(np.float32), rng.normal(size=(50, width)).astype(np.float32)
    target = known[:, :5].sum(axis=1) + rng.normal(size=200)
    scaler = StandardScaler().fit(known)
    reference = RidgeCV(200 * np.logspace(-4, 2, 13)).fit(scaler.transform(known), target)
    np.testing.assert_allclose(_ridge(known, target, asked), reference.predict(scaler.transform(asked)), atol=1e-5)
