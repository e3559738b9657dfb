"""Orders to a warm gang and its answers: numbered files in the gang's directory. Light to import.

The driver of a sweep writes an order, every worker of the gang reads it, rank 0 writes the answer. An order is carried
out once: a gang whose workers were started again begins with the order after the last one that the driver wrote.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from pydantic import ConfigDict, Field

from jobs import storage
from jobs.frozen import Frozen
from jobs.spec import Spec

Action = Literal["train", "export", "end"]
Status = Literal["paused", "finished", "stopped", "failed", "exported"]
_POLL_LOCAL_S, _POLL_REMOTE_S = 0.02, 0.5


class Order(Frozen):
    """What a gang is to do next."""

    action: Action = Field(description="train, export the trained model, or end.")
    run: str = Field("", description="Root of the trial's run.")
    spec: Spec | None = Field(None, description="The trial's spec.")
    until: int | None = Field(None, ge=1, description="Train to this step and pause; left out: to the end.")
    driver: str = Field("", description="The driver's word in the trial's run (see JobPaths.driver).")


class Answer(Frozen):
    """What came of an order."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="strings")

    status: Status = Field(description="paused, finished, stopped on request, failed, or exported.")
    step: int = Field(0, ge=0, description="Optimizer steps of the trial that are done.")
    total_steps: int = Field(0, ge=0, description="Optimizer steps of the whole trial.")
    tokens: int = Field(0, ge=0, description="Tokens that the steps of this order have taken.")
    loss: float | None = Field(None, description="Training loss of the last step.")
    metrics: dict[str, float] = Field(default_factory=dict, description="Newest eval_*, measured after `step`.")
    reason: str | None = Field(None, description="Why it failed.")


class Mailbox:
    """The orders and answers of one gang."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._poll_s = _POLL_LOCAL_S if storage.is_local(root) else _POLL_REMOTE_S

    def send(self, number: int, order: Order) -> None:
        storage.write_bytes(self._order(number), order.model_dump_json().encode())

    def answer(self, number: int, answer: Answer) -> None:
        storage.write_bytes(self._answer(number), answer.model_dump_json().encode())

    def await_order(self, number: int) -> Order:
        """Wait for as long as it takes."""
        while not storage.exists(self._order(number)):
            time.sleep(self._poll_s)
        return Order.model_validate_json(storage.read_bytes(self._order(number)))

    def await_answer(self, number: int, look: Callable[[], None]) -> Answer:
        """Wait for as long as it takes. `look` is called between two looks; what it raises ends the wait."""
        while not storage.exists(self._answer(number)):
            look()
            time.sleep(self._poll_s)
        return Answer.model_validate_json(storage.read_bytes(self._answer(number)))

    def _order(self, number: int) -> str:
        return storage.join(self._root, "orders", f"{number:06d}.json")

    def _answer(self, number: int) -> str:
        return storage.join(self._root, "answers", f"{number:06d}.json")
