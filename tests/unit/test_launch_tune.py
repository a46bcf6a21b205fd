import pytest

from hai.config.schema import ScaleConfig
from hai.config.sweep import SweepSettings
from hai.errors import ConfigError
from hai.launch.board import params_text
from hai.launch.tune import room_for

ONE_T4 = [{"CPU": 2.0, "GPU": 1.0}]
LAPTOP = [{"CPU": 8.0}]
CLUSTER = [{"CPU": 4.0}, *[{"CPU": 16.0, "GPU": 2.0}] * 2]


@pytest.mark.parametrize(
    ("nodes", "settings", "scale", "room"),
    [
        (ONE_T4, {}, {}, (1, 2, 1.0, 1)),
        (ONE_T4, {"gpus_per_worker": 0.5}, {}, (1, 1, 0.5, 2)),
        (ONE_T4, {"gpus_per_worker": 0.25}, {}, (1, 1, 0.25, 2)),  # two CPUs carry no more than two
        (ONE_T4, {}, {"use_gpu": False}, (1, 1, 0.0, 2)),
        (LAPTOP, {}, {}, (1, 1, 0.0, 8)),
        (LAPTOP, {"max_concurrent": 3}, {}, (1, 1, 0.0, 3)),
        (LAPTOP, {"workers_per_trial": 3, "cpus_per_worker": 2}, {}, (3, 2, 0.0, 1)),
        (LAPTOP, {}, {"cpus_per_worker": 4}, (1, 4, 0.0, 2)),
        (CLUSTER, {}, {}, (1, 9, 1.0, 2)),
        (CLUSTER, {"workers_per_trial": 4, "cpus_per_worker": 2}, {}, (4, 2, 1.0, 1)),
        (CLUSTER, {"gpus_per_worker": 0}, {}, (1, 1, 0.0, 36)),
    ],
)
def test_trials_share_a_cluster_so_that_each_starts_whole(
    nodes: list[dict[str, float]], settings: dict[str, object], scale: dict[str, object], room: tuple[object, ...]
) -> None:
    found = room_for(SweepSettings.model_validate(settings), ScaleConfig.model_validate(scale), nodes)
    assert (found.workers, found.cpus, found.gpus, found.trials) == room
    needed = {"CPU": found.cpus, "GPU": found.gpus}
    places = sum(
        min(int(node.get(kind, 0.0) // need) for kind, need in needed.items() if need) for node in nodes
    )  # fmt: skip
    assert places >= found.workers * found.trials


@pytest.mark.parametrize(
    ("nodes", "settings", "scale"),
    [
        (LAPTOP, {}, {"use_gpu": True}),
        (ONE_T4, {"workers_per_trial": 2}, {}),
        (ONE_T4, {"cpus_per_worker": 4}, {}),
        ([{"CPU": 2.0}] * 4, {"cpus_per_worker": 4}, {}),  # eight CPUs, but no machine has four
    ],
)
def test_what_can_never_fit_is_refused(
    nodes: list[dict[str, float]], settings: dict[str, object], scale: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match=r"sweep.workers_per_trial = \d with .* each: the cluster has"):
        room_for(SweepSettings.model_validate(settings), ScaleConfig.model_validate(scale), nodes)


def test_values_are_named_as_briefly_as_they_can_be() -> None:
    assert params_text({"optim.learning_rate": 0.00123456, "model.name": "compact"}) == (
        "learning_rate 0.001235, name compact"
    )
    assert params_text({"optim.name": "sgd", "model.name": "compact"}) == "optim.name sgd, model.name compact"
