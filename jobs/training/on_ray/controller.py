"""Runs Ray Train's controller in the driver's process.

By default Ray Train starts the controller as an actor on the driver's node. Before that process starts the first
worker, it spends seconds on imports that the driver already has. As an actor it would also end with the driver, and it
never restarts workers, so a separate process has no advantage.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import ray
from ray.train.v2._internal.execution.controller.controller import TrainController
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2._internal.execution.worker_group import state, worker_group
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

# Callbacks that each start a process. The trainer has no data sets, and its placement group ends with this process.
_NEEDLESS = {"DatasetsCallback", "PlacementGroupCleanerCallback"}


class DriverTrainer(DataParallelTrainer):  # type: ignore[misc]  # ray carries no types
    """A DataParallelTrainer, the base class of TorchTrainer, whose controller runs in this process.

    Args:
        left: the driver sets this event when it gives up the workers. The controller then ends them, and `fit` raises
            ControllerError.
        alone: Ray ends with this process.
        config, more: arguments of DataParallelTrainer. The `backend_config` is a `ProcessGroup`.
    """

    def __init__(self, *config: Any, left: threading.Event, alone: bool = False, **more: Any) -> None:
        self._left, self._alone = left, alone
        super().__init__(*config, **more)

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if type(one).__name__ not in _NEEDLESS]

    def _initialize_and_run_controller(self, **what: Any) -> Any:
        if self._alone:
            what["scaling_policy"] = _UnaskedPolicy(self.scaling_config)
        controller = _Controller(**what)
        controller.left = self._left
        asyncio.run(controller.run())
        return controller.get_result()


class _Group(worker_group.WorkerGroup):  # type: ignore[misc]
    def _init_train_context_on_workers(self, workers: list[Any], sync_actor: Any, arguments: dict[str, Any]) -> None:
        """Pass no handles of actors: a worker would need them only for Ray Train's own checkpoints."""
        common = {
            "train_run_context": self._train_run_context,
            "storage_context": self._storage_context,
            "synchronization_actor": None,
            "worker_callbacks": self._worker_callbacks_to_propagate,
            "controller_actor": None,
        }
        told = []
        for index, worker in enumerate(workers):
            own = {name: values[index] for name, values in arguments.items()}
            place = worker.distributed_context
            told.append(worker.actor.init_train_context.remote(distributed_context=place, **common, **own))
        ray.get(told)
        self._decorate_worker_log_file_paths(workers)


class _UnaskedPolicy(FixedScalingPolicy):  # type: ignore[misc]
    """Do not start the actor that would ask an autoscaler for machines: a local Ray has none."""

    def after_controller_start(self, train_run_context: Any) -> None:
        pass

    def _maybe_send_resource_request(self) -> None:
        pass


class _NoActor:
    """Takes the place of the actor behind `ray.train.report`, which no worker calls: it would be one more process."""

    @classmethod
    def options(cls, **_: Any) -> type[_NoActor]:
        return cls

    @classmethod
    def remote(cls, **_: Any) -> _NoActor:
        return cls()


# Set for good, because the gangs of a sweep start and end in threads.
worker_group.SynchronizationActor = _NoActor
state._shutdown_sync_actor = lambda actor: None


class _Controller(TrainController):  # type: ignore[misc]
    worker_group_cls = _Group
    left: threading.Event

    async def _poll_workers(self) -> Any:
        if self.left.is_set():
            raise RuntimeError("the driver has left")
        return await super()._poll_workers()
