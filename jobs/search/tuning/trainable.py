"""The actor that stands for a trial in Ray Tune: it asks the sweep's driver for training, and waits for the score."""

from __future__ import annotations

import secrets
from typing import Any

from ray import tune

from jobs.training.mailbox import Request, TrialMailbox


class GangTrial(tune.Trainable):  # type: ignore[misc]  # ray carries no types
    """A trial. One step of Tune is the training to the next score. The model's state is on the gang and in the run."""

    def setup(self, config: dict[str, Any]) -> None:
        self._mailbox, self._trial = TrialMailbox(config["mailbox"]), int(config["trial"])
        self._metric, self._rung = str(config["metric"]), int(config["rung"])

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        name = f"{self._trial:04d}-{self._rung:02d}-{secrets.token_hex(4)}"
        self._mailbox.requests.put(name, Request(trial=self._trial))
        answer = self._mailbox.answers.wait(name)
        self._rung += 1
        return {
            "rung": self._rung,
            "step": answer.step,
            "tokens": answer.tokens,
            "done": answer.status != "paused",
            self._metric: answer.metrics.get(self._metric, 0.0),
        }

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {"rung": self._rung}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        self._rung = int((checkpoint or {})["rung"])
