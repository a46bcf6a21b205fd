"""Ray's TorchTrainer without the helper processes that a run of ours never asks anything."""

from __future__ import annotations

from typing import Any

import ray
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

from hai.launch.alone import LonePolicy

__all__ = ["LeanTrainer"]


class LeanTrainer(TorchTrainer):
    """Start workers without Ray's manager of its own data sets, which we do not use.

    On two cores each helper delays the first step by seconds: it is a Python process that imports Ray Train before the
    workers may start, or while they import torch.

    Args:
        is_alone: the cluster is this process's own: it holds the one machine that there is and ends with the process,
            so that neither machines have to be asked for nor anything has to be freed after a controller that died.
        settings: TorchTrainer's.
    """

    def __init__(self, *args: Any, is_alone: bool, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._is_alone = is_alone

    def _create_default_callbacks(self) -> list[Any]:
        unused = (DatasetsCallback, *([PlacementGroupCleanerCallback] if self._is_alone else []))
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # of Ray Train's second version
        return [callback for callback in callbacks if not isinstance(callback, unused)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        if not self._is_alone:
            return super()._initialize_and_run_controller(**parts)  # type: ignore[misc]
        if type(parts["scaling_policy"]) is FixedScalingPolicy:
            parts["scaling_policy"] = LonePolicy(parts["scaling_policy"].scaling_config)
        # Every process of an own cluster has this one's environment, so the controller needs none of its own, for which
        # Ray would start a process anew: it takes one that waits.
        controller: Any = ray.remote(num_cpus=0)(TrainController).remote(**parts)
        ray.get(controller.run.remote())
        return ray.get(controller.get_result.remote())
