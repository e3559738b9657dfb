"""A trial as Ray Tune runs it: an actor that asks the sweep's driver for training, and waits for the score."""

from __future__ import annotations

import secrets
from typing import Any

from ray import tune

from jobs.training.mailbox import Answer, Desk, Request


class GangTrial(tune.Trainable):  # type: ignore[misc]  # ray carries no types
    """Each Tune step is one rung. All of the trial's state is in its run's directory and on its gang."""

    def setup(self, config: dict[str, Any]) -> None:
        self._desk, self._trial = Desk(config["desk"]), int(config["trial"])
        self._stops: list[int | None] = list(config["stops"])
        self._metric, self._rung = str(config["metric"]), int(config["rung"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        name = f"{self._trial:04d}-{self._rung:02d}-{secrets.token_hex(4)}"
        until = self._stops[min(self._rung, len(self._stops) - 1)]  # of auto, the driver decides
        self._desk.requests.put(name, Request(trial=self._trial, until=until))
        answer = self._desk.answers.wait(name, Answer)
        self._rung += 1
        return {
            "rung": self._rung,
            "step": answer.step,
            "tokens": answer.tokens,
            "done": answer.status not in ("paused",),
            self._metric: answer.metrics.get(self._metric, 0.0),
        }

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {"rung": self._rung}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        self._rung = int((checkpoint or {})["rung"])
