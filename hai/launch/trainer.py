"""Ray's TorchTrainer without the helper processes that a run of ours never asks anything, and one that can be ended."""

from __future__ import annotations

from typing import Any

import ray
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.util.placement_group import PlacementGroup, remove_placement_group

from hai.launch.steering import LonePolicy, SaveFirst

__all__ = ["LeanTrainer"]


class LeanTrainer(TorchTrainer):
    """Start workers without Ray's manager of its own data sets, which we do not use.

    On two cores each helper delays the first step by seconds: it is a Python process that imports Ray Train before the
    workers may start, or while they import torch.

    Args:
        is_alone: the cluster is this process's own: it holds the one machine that there is and ends with the process,
            so that neither machines have to be asked for nor anything has to be freed after a controller that died.
        mailbox: where the workers are asked for a checkpoint.
        settings: TorchTrainer's.
    """

    def __init__(self, *args: Any, is_alone: bool, mailbox: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._is_alone, self._mailbox = is_alone, mailbox
        self._controller: Any = None

    def end(self) -> None:
        """End what still runs, if anything does; what its workers have not saved is lost.

        The controller cannot be asked to: while its workers wait for machines it hears nothing. They end with it, but
        Ray would keep the machines for them.
        """
        if self._controller is None:
            return
        ray.kill(self._controller)
        own = self._controller._actor_id.binary()
        for record in state._connect_and_get_accessor().get_placement_group_table():
            group = PlacementGroupTableData.FromString(record)
            if group.creator_actor_id == own and group.state != PlacementGroupTableData.REMOVED:
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))

    def _create_default_callbacks(self) -> list[Any]:
        unused = (DatasetsCallback, *([PlacementGroupCleanerCallback] if self._is_alone else []))
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]  # of Ray Train's second version
        return [*(callback for callback in callbacks if not isinstance(callback, unused)), SaveFirst(self._mailbox)]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        # Every process of an own cluster has this one's environment, so the controller needs none of its own, for which
        # Ray would start a process anew: it takes one that waits.
        options: dict[str, Any] = {"num_cpus": 0}
        if not self._is_alone:  # as Ray has it
            options["label_selector"] = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
            environment = {"RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"} | get_env_vars_to_propagate()
            options["runtime_env"] = {"env_vars": environment}
        elif type(parts["scaling_policy"]) is FixedScalingPolicy:
            parts["scaling_policy"] = LonePolicy(parts["scaling_policy"].scaling_config)
        self._controller = ray.remote(**options)(TrainController).remote(**parts)
        ray.get(self._controller.run.remote())
        result = ray.get(self._controller.get_result.remote())
        self._controller = None
        return result
