"""Messages between the driver of a sweep, its trials and its warm gangs: files, each written once. Light to import.

The driver writes a task for a gang; every worker of the gang reads it, and rank 0 writes the answer. A task is
carried out once: if the workers are replaced, the new ones begin after the last task that the driver wrote.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

from pydantic import ConfigDict, Field

from cluster.errors import StorageOutage
from jobs.frozen import Frozen, Shown
from jobs.spec.finetune import Spec
from jobs.storage import files as storage

Action = Literal["train", "probe", "export", "end"]
Status = Literal["paused", "finished", "stopped", "failed", "probed", "exported"]
_POLL_LOCAL_S, _POLL_REMOTE_S = 0.02, 0.5

Message = TypeVar("Message", bound=Frozen)


class Request(Frozen):
    """A trial's request to be trained up to its next score."""

    trial: int = Field(ge=1, description="Number of the trial.")


class GangTask(Frozen):
    """The next task of a gang."""

    action: Action = Field(description="train, probe (losses after one step), export the trained model, or end.")
    run: str = Field("", description="Root of the trial's run.")
    spec: Spec | None = Field(None, description="The trial's spec.")
    until: int | None = Field(None, ge=1, description="Train to this step and pause; default: to the end.")
    cooldown_steps: int = Field(
        0,
        ge=0,
        description="Steps with a falling rate before the score at a pause; afterwards the state is restored.",
    )
    rates: tuple[float, ...] = Field((), description="For a probe: learning rates of the single step.")
    metric: str = Field("", description="Metric that ranks trials; if the job lacks it, the trial fails at its start.")
    driver: str = Field("", description="Id of the trial's driver (see JobPaths.driver).")


class Answer(Shown):
    """The result of a task."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="strings")

    status: Status = Field(description="paused, finished, stopped on request, failed, probed, or exported.")
    step: int = Field(0, ge=0, description="Optimizer steps of the trial that are completed.")
    total_steps: int = Field(0, ge=0, description="Optimizer steps of the whole trial.")
    tokens: int = Field(0, ge=0, description="Tokens that the steps of this task trained on.")
    loss: float | None = Field(None, description="Training loss of the last step.")
    metrics: dict[str, float] = Field(default_factory=dict, description="Newest eval_*, measured after `step`.")
    base: dict[str, float] = Field(default_factory=dict, description="eval_* before the first step, if known.")
    cooled: dict[str, float] = Field(default_factory=dict, description="eval_* after the cool-down of a pause.")
    losses: tuple[float, ...] = Field(
        (), description="For a probe: the loss before the step, and after it at each rate."
    )
    reason: str | None = Field(None, description="Why the task failed.")
    diverged: bool = Field(False, description="The training diverged: another attempt would compute the same.")
    metric_failed: Literal["before", "later"] | None = Field(
        None, description="When a user's metric function failed: before the first step, or later."
    )
    seconds: float = Field(0.0, ge=0.0, description="Seconds that the gang took for the task.")

    @property
    def judged(self) -> dict[str, float]:
        """The metrics by which the trial is compared: those after the cool-down, if there was one."""
        return self.cooled or self.metrics


class MessageFolder(Generic[Message]):
    """A folder of messages of one kind, by name or number."""

    def __init__(self, root: str, kind: type[Message]) -> None:
        self._root, self._kind = root, kind
        self._poll_s = _POLL_LOCAL_S if storage.is_local(root) else _POLL_REMOTE_S

    def names(self) -> list[str]:
        """List the names of complete messages, sorted."""
        found = storage.list_names(self._root)
        return sorted(name.removesuffix(".json") for name in found if name.endswith(".json"))

    def put(self, name: str | int, message: Message) -> None:
        storage.write_bytes(self._path(name), message.model_dump_json().encode())

    def read(self, name: str | int) -> Message:
        return self._kind.model_validate_json(storage.read_bytes(self._path(name)))

    def remove(self, name: str) -> None:
        storage.remove_file(self._path(name))

    def wait(self, name: str | int, look: Callable[[], None] = lambda: None) -> Message:
        """Wait for a message without a time limit, even while the storage is down.

        `look` is called at each poll; an exception from it ends the wait.
        """
        while True:
            with contextlib.suppress(StorageOutage):
                if storage.exists(self._path(name)):
                    return self.read(name)
            look()
            time.sleep(self._poll_s)

    def _path(self, name: str | int) -> str:
        return storage.join(self._root, f"{name if isinstance(name, str) else f'{name:06d}'}.json")


class TrialMailbox:
    """Requests of the trials of a sweep, and the driver's answers. Both have the same names."""

    def __init__(self, root: str) -> None:
        self.requests = MessageFolder(storage.join(root, "requests"), Request)
        self.answers = MessageFolder(storage.join(root, "answers"), Answer)


class Mailbox:
    """The tasks and answers of one gang, numbered from 1."""

    def __init__(self, root: str) -> None:
        self.tasks = MessageFolder(storage.join(root, "orders"), GangTask)
        self.answers = MessageFolder(storage.join(root, "answers"), Answer)
        self._opened = storage.join(root, "open")

    def open(self) -> None:
        """Record that the model and the rows are loaded, so that tasks will be read."""
        storage.write_bytes(self._opened, b"")

    def close(self) -> None:
        storage.remove_file(self._opened)

    @property
    def is_open(self) -> bool:
        return storage.exists(self._opened)
