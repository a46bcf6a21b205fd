"""How the trials of a sweep share a cluster."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hai.config.schema import ScaleConfig
from hai.config.sweep import SweepSettings
from hai.errors import ConfigError
from hai.launch import preemption, tune
from hai.launch.board import params_text
from hai.launch.room import GROWS_TO, Machine, Room, machines_of, num_workers_in, room_for
from hai.types import SAVE, Record

ONE_T4 = [Machine(2, 1)]
LAPTOP = [Machine(8, 0)]
CLUSTER = [Machine(4, 0), *[Machine(16, 2)] * 2]
HEAD = {"Alive": True, "Resources": {"memory": 1e9}}  # started with --num-cpus=0


def room(machines: list[Machine], settings: dict[str, object], scale: dict[str, object]) -> Room:
    return room_for(SweepSettings.model_validate(settings), ScaleConfig.model_validate(scale), machines)


@pytest.mark.parametrize(
    ("machines", "settings", "scale", "expected"),
    [
        (ONE_T4, {}, {}, (1, 2, 1.0, 1)),
        (ONE_T4, {"gpus_per_worker": 0.5}, {}, (1, 1, 0.5, 2)),
        (ONE_T4, {"gpus_per_worker": 0.25}, {}, (1, 1, 0.25, 2)),  # two CPUs carry no more than two
        (ONE_T4, {}, {"use_gpu": False}, (1, 1, 0.0, 2)),
        ([Machine(6, 1)], {"gpus_per_worker": 1 / 3}, {}, (1, 2, 1 / 3, 3)),
        (LAPTOP, {}, {}, (1, 1, 0.0, 8)),
        (LAPTOP, {"max_concurrent": 3}, {}, (1, 1, 0.0, 3)),
        (LAPTOP, {"workers_per_trial": 3, "cpus_per_worker": 2}, {}, (3, 2, 0.0, 1)),
        (LAPTOP, {}, {"cpus_per_worker": 4}, (1, 4, 0.0, 2)),
        (CLUSTER, {}, {}, (1, 8, 1.0, 4)),  # a share of all 36 CPUs would leave two GPUs without work
        (CLUSTER, {"max_concurrent": 2}, {}, (1, 16, 1.0, 2)),
        (CLUSTER, {"workers_per_trial": 3}, {}, (3, 8, 1.0, 1)),
        (CLUSTER, {"workers_per_trial": 4, "cpus_per_worker": 2}, {}, (4, 2, 1.0, 1)),
        (CLUSTER, {"gpus_per_worker": 0}, {}, (1, 1, 0.0, 36)),
    ],
)
def test_trials_share_a_cluster_so_that_each_starts_whole(
    machines: list[Machine], settings: dict[str, object], scale: dict[str, object], expected: tuple[object, ...]
) -> None:
    found = room(machines, settings, scale)
    assert (found.workers, found.cpus, found.gpus, found.trials) == expected
    assert num_workers_in(machines, found.cpus, found.gpus) >= found.workers * found.trials


def test_a_cluster_that_starts_machines_by_itself_has_their_room() -> None:
    machines = machines_of([HEAD], {GROWS_TO: "4 CPU=8 GPU=1"})
    assert room(machines, {}, {}) == Room(workers=1, cpus=8, gpus=1.0, trials=4)
    with pytest.raises(ConfigError, match=r"0 GPUs and 0 CPUs on 1 machine; .*say in HAI_GROWS_TO which"):
        room(machines_of([HEAD], {}), {}, {})


@pytest.mark.parametrize(
    ("machines", "settings", "scale"),
    [
        (LAPTOP, {}, {"use_gpu": True}),
        (ONE_T4, {"workers_per_trial": 2}, {}),
        (ONE_T4, {"cpus_per_worker": 4}, {}),
        ([Machine(2, 0)] * 4, {"cpus_per_worker": 4}, {}),  # eight CPUs, but no machine has four
    ],
)
def test_what_can_never_fit_is_refused(
    machines: list[Machine], settings: dict[str, object], scale: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match=r"sweep.workers_per_trial = \d with .* each: the cluster has"):
        room(machines, settings, scale)


def test_the_workers_of_a_trial_do_not_share_a_card() -> None:
    with pytest.raises(ConfigError, match=r"gpus_per_worker = 0\.5 with sweep\.workers_per_trial = 2"):
        room(CLUSTER, {"workers_per_trial": 2, "gpus_per_worker": 0.5}, {})


def test_values_are_named_as_briefly_as_they_can_be() -> None:
    assert params_text({"optim.learning_rate": 0.00123456, "model.name": "compact"}) == (
        "learning_rate 0.001235, name compact"
    )
    assert params_text({"optim.name": "sgd", "model.name": "compact"}) == "optim.name sgd, model.name compact"


def test_a_trial_whose_machine_is_taken_away_saves_first_and_then_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notice, is_saved, moved = tmp_path / "leave", threading.Event(), threading.Event()
    letters: list[tuple[str, object]] = []
    reports: list[Record] = []

    def move(gone: float, tell: object) -> None:
        assert is_saved.is_set()
        assert gone > 0
        moved.set()

    def train(record: Record, **given: object) -> Record:
        request = given["request"]
        assert request() == 0
        notice.touch()
        while (asked := request()) == 0:
            time.sleep(0.01)
        assert asked == SAVE
        is_saved.set()
        assert request() == 0  # once for a notice
        assert moved.wait(30)
        return {"status": "finished"}

    monkeypatch.setenv(preemption.NOTICE_FILE, str(notice))
    monkeypatch.setattr(preemption, "_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(tune, "train_trial", train)
    monkeypatch.setattr(tune, "move", move)
    monkeypatch.setattr(tune, "Asked", lambda _: SimpleNamespace(start=int, end=int, request=int))
    monkeypatch.setattr(tune.tune, "report", reports.append)
    mailbox = SimpleNamespace(put=SimpleNamespace(remote=lambda *letter: letters.append(letter)))
    room = Room(workers=1, cpus=1, gpus=0.0, trials=1)
    tune._trial({"job": json.dumps({"number": 7})}, mailbox=mailbox, room=room)
    told = "trial 7: the cluster: this machine will be taken away in 15 s: saving a checkpoint"
    assert letters == [("started", 7), ("say", told)]
    assert [json.loads(report["outcome"]) for report in reports] == [{"status": "finished"}]
