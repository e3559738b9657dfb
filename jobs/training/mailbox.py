"""Messages between the driver of a sweep, its trials and its warm gangs: files, each written once. Light to import.

The driver writes an order for a gang, every worker of the gang reads it, rank 0 writes the answer. An order is carried
out once: a gang whose workers were started again begins with the order after the last one that the driver wrote.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Literal, TypeVar

from pydantic import ConfigDict, Field

from jobs.errors import StorageOutage
from jobs.frozen import Frozen
from jobs.spec.finetune import Spec
from jobs.storage import files as storage

Action = Literal["train", "probe", "export", "end"]
Status = Literal["paused", "finished", "stopped", "failed", "probed", "exported"]
_POLL_LOCAL_S, _POLL_REMOTE_S = 0.02, 0.5

Message = TypeVar("Message", bound=Frozen)


class Request(Frozen):
    """What a trial wants."""

    trial: int = Field(ge=1, description="Number of the trial.")
    until: int | None = Field(None, ge=1, description="Train to this step and pause; left out: to the end.")


class Order(Frozen):
    """What a gang is to do next."""

    action: Action = Field(description="train, probe (losses after one step), export the trained model, or end.")
    run: str = Field("", description="Root of the trial's run.")
    spec: Spec | None = Field(None, description="The trial's spec.")
    until: int | None = Field(None, ge=1, description="Train to this step and pause; left out: to the end.")
    cooldown_steps: int = Field(
        0,
        ge=0,
        description="At a pause, score what so many steps with a falling rate make of it; then all is put back.",
    )
    rates: tuple[float, ...] = Field((), description="Of a probe: the learning rates of the one step.")
    metric: str = Field("", description="Held-out metric that is judged; its absence is told before the first step.")
    driver: str = Field("", description="The driver's word in the trial's run (see JobPaths.driver).")


class Answer(Frozen):
    """What came of an order."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="strings")

    status: Status = Field(description="paused, finished, stopped on request, failed, probed, or exported.")
    step: int = Field(0, ge=0, description="Optimizer steps of the trial that are done.")
    total_steps: int = Field(0, ge=0, description="Optimizer steps of the whole trial.")
    tokens: int = Field(0, ge=0, description="Tokens that the steps of this order have taken.")
    loss: float | None = Field(None, description="Training loss of the last step.")
    metrics: dict[str, float] = Field(default_factory=dict, description="Newest eval_*, measured after `step`.")
    base: dict[str, float] = Field(default_factory=dict, description="eval_* before the first step, if known.")
    cooled: dict[str, float] = Field(default_factory=dict, description="eval_* after the cool-down of a pause.")
    losses: tuple[float, ...] = Field((), description="Of a probe: before the step, and after it at each rate.")
    reason: str | None = Field(None, description="Why it failed.")

    @property
    def judged(self) -> dict[str, float]:
        """The metrics by which it is compared."""
        return self.cooled or self.metrics


class Tray:
    """A folder of messages by name."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._poll_s = _POLL_LOCAL_S if storage.is_local(root) else _POLL_REMOTE_S

    def names(self) -> list[str]:
        """Of whole messages, in their order; a file that is being written begins with a dot."""
        found = storage.list_names(self._root)
        return sorted(name.removesuffix(".json") for name in found if name.endswith(".json") and name[0] != ".")

    def put(self, name: str, message: Frozen) -> None:
        storage.write_bytes(self._path(name), message.model_dump_json().encode())

    def has(self, name: str) -> bool:
        return storage.exists(self._path(name))

    def read(self, name: str, kind: type[Message]) -> Message:
        return kind.model_validate_json(storage.read_bytes(self._path(name)))

    def wait(self, name: str, kind: type[Message], look: Callable[[], None] = lambda: None) -> Message:
        """Wait for as long as it takes, also for the storage. What `look` raises between two looks ends the wait."""
        while True:
            with contextlib.suppress(StorageOutage):
                if self.has(name):
                    return self.read(name, kind)
            look()
            time.sleep(self._poll_s)

    def _path(self, name: str) -> str:
        return storage.join(self._root, f"{name}.json")


class Desk:
    """Where the trials of a sweep leave their requests, and find what came of them."""

    def __init__(self, root: str) -> None:
        self.requests = Tray(storage.join(root, "requests"))
        self.answers = Tray(storage.join(root, "answers"))


class Mailbox:
    """The orders and answers of one gang, by number from 1 on."""

    def __init__(self, root: str) -> None:
        self._orders, self._answers = Tray(storage.join(root, "orders")), Tray(storage.join(root, "answers"))
        self._opened = storage.join(root, "open")

    def open(self) -> None:
        """Say that orders are read: the model and the rows are loaded."""
        storage.write_bytes(self._opened, b"")

    def close(self) -> None:
        storage.remove_file(self._opened)

    @property
    def is_open(self) -> bool:
        return storage.exists(self._opened)

    def send(self, number: int, order: Order) -> None:
        self._orders.put(_name(number), order)

    def answer(self, number: int, answer: Answer) -> None:
        self._answers.put(_name(number), answer)

    def await_order(self, number: int) -> Order:
        return self._orders.wait(_name(number), Order)

    def await_answer(self, number: int, look: Callable[[], None]) -> Answer:
        return self._answers.wait(_name(number), Answer, look)


def _name(number: int) -> str:
    return f"{number:06d}"
