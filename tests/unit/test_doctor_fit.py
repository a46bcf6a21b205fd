from __future__ import annotations

import pytest

from hai.config.load import config_from_yaml_text
from hai.config.schema import RunConfig
from hai.doctor.advice import RENTED, _fitted, advise, even_micro_batch
from hai.doctor.fit import Need, needs_of

TINY = """
data: {sources: [{name: a, path: a}], image_size: 64}
model: {name: compact, pretrained: false}
train: {global_batch_size: 16}
"""


def config(*overrides: str) -> RunConfig:
    return config_from_yaml_text(TINY, "tiny.yaml", overrides)


def test_a_need_is_a_line_and_the_most_that_fits_stays_below_the_memory() -> None:
    need = Need(fixed=2e9, each=100e6)
    most = need.most(16e9)
    assert most == 114
    assert need.at(most) <= 0.9 * 16e9 - 1e9 < need.at(most + 1)
    assert need.most(3e9) == 0
    assert Need(1e9, 1e6, least=5e9).most(6e9) == 0


@pytest.mark.parametrize("share", [1, 7, 32, 33])
@pytest.mark.parametrize("most", [1, 2, 5, 31, 32, 40])
def test_a_suggested_micro_batch_divides_as_the_loop_does(share: int, most: int) -> None:
    size = even_micro_batch(share, most)
    assert 1 <= size <= min(share, most)
    assert -(-share // size) == -(-share // most)


@pytest.mark.parametrize(
    ("need", "settings"),
    [
        (Need(1e9, 0.1e9), ()),
        (Need(1e9, 1e9), ("train.micro_batch_size=11",)),  # 12 fit; 32 divide into 11, 11, 10
        (Need(1e9, 20e9), ("model.gradient_checkpointing=true",)),
        (Need(1e6, 1e4, least=20e9), None),  # encoding takes it
    ],
)
def test_what_to_set_follows_from_what_fits(need: Need, settings: tuple[str, ...] | None) -> None:
    row = _fitted(config(), need, "fp16", 32, *RENTED[0][:2])
    assert row.settings == settings
    assert row.takes == need.at(32)
    again = _fitted(config("model.gradient_checkpointing=true"), Need(1e9, 20e9), "fp16", 32, *RENTED[0][:2])
    assert again.settings is None


def test_more_workers_than_a_machine_has_are_a_problem() -> None:
    findings, advice = advise(config("scale.num_workers=3", "scale.use_gpu=true"), {"CPU": 8, "GPU": 2}, [], quick=True)
    assert advice is None
    assert [(one.status, one.text) for one in findings] == [
        ("problem", "scale.num_workers = 3: the cluster has 2 GPUs")
    ]
    findings, _ = advise(config("scale.num_workers=2"), {"CPU": 8, "GPU": 2}, [], quick=True)
    assert [one.text for one in findings] == ["2, each on a GPU with 4 CPUs"]


@pytest.mark.slow
def test_a_step_is_counted_without_being_computed() -> None:
    plain = needs_of(config())
    parameters = plain.checkpoint / 3 / 4  # AdamW keeps two averages beside every weight
    assert 200_000 < parameters < 230_000
    assert plain.mixed.each < plain.full.each < 2.2 * plain.mixed.each
    assert plain.full.fixed >= 4 * 4 * 0.95 * parameters  # weights, gradients and two averages
    assert plain.image_size == 64
    larger = needs_of(config("data.image_size=128"))
    assert 3.5 < larger.full.each / plain.full.each < 4.5
    sgd = needs_of(config("optim.name=sgd", "train.ema_decay=0.9"))
    assert sgd.full.at(8) == pytest.approx(plain.full.at(8), rel=0.02)  # one average less, averaged weights more


@pytest.mark.slow
def test_what_is_frozen_or_recomputed_takes_less() -> None:
    network = ["model.name=timm:resnet18", "train.global_batch_size=8"]
    whole, frozen = needs_of(config(*network)), needs_of(config(*network, "model.freeze_backbone=true"))
    assert frozen.full.each < whole.full.each
    assert frozen.full.fixed < whole.full.fixed / 2
    again = needs_of(config(*network, "model.gradient_checkpointing=true"))
    assert again.full.each < 0.8 * whole.full.each


@pytest.mark.slow
def test_a_ranker_that_keeps_features_takes_what_encoding_takes() -> None:
    ranker = ["task=ranker", "model.name=timm:resnet18", "model.freeze_backbone=true"]
    kept, not_kept = needs_of(config(*ranker)), needs_of(config(*ranker, "augment.flip=0.5"))
    assert kept.full.at(1) == kept.full.least > 40e6  # 11 million weights at least
    assert kept.full.each < not_kept.full.each / 10
    assert not_kept.full.least < kept.full.least
    assert kept.checkpoint < 20e6
