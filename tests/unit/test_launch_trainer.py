"""What Ray Train is kept from starting, and that it still would: else this code has no use any more."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_another_ray_starts_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train.torch import TorchTrainer  # before what it lacks below

    from hai.launch.ray_train import trainer_for

    assert trainer_for(is_alone=True, mailbox=None).func is sys.modules["hai.launch.trainer"].LeanTrainer
    monkeypatch.delitem(sys.modules, "hai.launch.trainer")
    monkeypatch.setitem(sys.modules, "ray.train.v2._internal.callbacks", None)
    assert trainer_for(is_alone=True, mailbox=None) is TorchTrainer


def test_who_only_steers_needs_no_torch() -> None:
    parts = "hai.launch.steering, hai.launch.group, hai.launch.mailbox, hai.launch.ray_train"
    code = f"import sys, {parts}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
@pytest.mark.parametrize("is_alone", [True, False])
def test_helpers_that_nobody_asks_are_not_started(is_alone: bool) -> None:
    import ray.train
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution.scaling_policy import (
        ElasticScalingPolicy,
        FixedScalingPolicy,
        create_scaling_policy,
    )

    from hai.launch.steering import LonePolicy
    from hai.launch.trainer import LeanTrainer

    def names(trainer: TorchTrainer) -> list[str]:
        return [type(callback).__name__ for callback in trainer._create_default_callbacks()]  # type: ignore[attr-defined]

    left_out = {"DatasetsCallback"} | ({"PlacementGroupCleanerCallback"} if is_alone else set())
    ours, rays = names(LeanTrainer(lambda: None, is_alone=is_alone, mailbox=None)), names(TorchTrainer(lambda: None))
    assert set(rays) - set(ours) == left_out
    assert ours == [*(name for name in rays if name not in left_out), "SaveFirst"]

    class Controller:
        """In place of Ray's actor."""

        def __init__(self, **parts: object) -> None:
            policies.append(parts["scaling_policy"])
            self.run = self.get_result = self

        @staticmethod
        def remote(**parts: object) -> Controller:
            return Controller(**parts) if parts else None  # type: ignore[return-value]

    policies: list[object] = []

    def policy_of(scaling: ray.train.ScalingConfig) -> type:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ray, "remote", lambda **options: lambda kind: Controller)
            patch.setattr(ray, "get", lambda reference: None)
            patch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=str))
            trainer = LeanTrainer(lambda: None, scaling_config=scaling, is_alone=is_alone, mailbox=None)
            trainer._initialize_and_run_controller(scaling_policy=create_scaling_policy(scaling))
        return type(policies[-1])

    assert policy_of(ray.train.ScalingConfig(num_workers=2)) is (LonePolicy if is_alone else FixedScalingPolicy)
    assert policy_of(ray.train.ScalingConfig(num_workers=(1, 2))) is ElasticScalingPolicy
    assert not ray.is_initialized()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_a_group_saves_before_it_grows_and_not_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.train.v2._internal.execution.controller.state import ResizingState, RestartingState, RunningState

    from hai.launch.mailbox import Mailbox
    from hai.launch.steering import SaveFirst

    box = Mailbox()

    def ask_save() -> int:
        number = box.ask_save()
        box.note_saved(number)  # as rank 0 does after its next step
        return number

    mailbox = SimpleNamespace(ask_save=SimpleNamespace(remote=ask_save), saved=SimpleNamespace(remote=box.saved))
    monkeypatch.setattr("ray.get", lambda answer, timeout: answer)
    before: Any = SaveFirst(mailbox)
    before.after_controller_state_update(RunningState(), RestartingState(training_failed_error=RuntimeError()))
    assert box.saved() == 0
    before.after_controller_state_update(RunningState(), ResizingState(scaling_decision=None))
    assert box.saved() == 1
