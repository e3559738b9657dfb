"""Reports a run's progress to the queue: steps, remaining time, and the cost of an interruption."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from jobs.drivers.link.link import Link
from jobs.run.outcome import Event
from jobs.run.progress import Clock, Pace, Progress

_CHECKPOINT_S = "checkpoint_s"  # a job that is told to stop has more time the longer its checkpoints take
# Values of a step's record that are useful in a list of jobs.
_METRICS = ("loss", "learning_rate", "grad_norm", "epoch", "tokens_per_s")


class ProgressReporter:
    """A Progress that passes everything on to another one, and also reports it to the link."""

    def __init__(self, inner: Progress, link: Link, places: Sequence[str] = (), clock: Clock = time.monotonic) -> None:
        """`places`: node of each worker of the lease, if part of the lease may be given back."""
        self._places = places
        self._inner, self._link, self._clock = inner, link, clock
        self._pace = Pace()
        self._began = clock()
        self._startup_s: float | None = None  # from the creation of this object to the end of the first step
        self._saved = 0  # step of the newest checkpoint
        self._step, self._step_s = 0, 0.0
        self._before = 0  # steps of all trials before the final run of a sweep, or before this sweep of a comparison
        self._left = 0  # sweeps of a comparison after this one
        self._has_run = False  # whether the run was told; the sweeps of a comparison start inside of it

    def event(self, event: Event) -> None:
        self._inner.event(event)
        self._pace.event(event)
        data = event.data
        if event.kind == "phase" and "root" in data:
            self._start(data["root"])
        elif data.get("phase") == "workers":
            self._began = self._clock()  # a restart does not prepare the data again
        elif data.get("phase") == "given-back" and self._places:
            self._link.tell(keeps=tuple(self._places[worker] for worker in data["workers"]))
        elif data.get("phase") == "final":
            self._begin_part(self._before + data["steps"])
        elif data.get("phase") == "method" and "steps" in data:
            self._begin_part(**data["steps"])
            self._left = data["left"]
        elif data.get("phase") == "compared":
            self._link.tell(metrics=data["metrics"])
        elif event.kind == "plan" and "total_steps" in data:
            self._step = self._saved = self._before  # a group starts; if it resumes, an event tells from which step
            self._link.tell(total_steps=self._before + data["total_steps"])
        elif event.kind == "planned" and "remaining_s" in data:
            self._link.tell(remaining_s=data["remaining_s"])
        elif data.get("phase") == "resumed" and "step" in data:
            self._continues_from(data["step"])
        elif event.kind == "remedy" and data.get("to_step") is not None and data.get("stage") != "stop":
            self._continues_from(data["to_step"])
        elif event.kind == "checkpoint" and "step" in data:
            self._saved = self._before + data["step"]
            self._step = max(self._step, self._saved)
            cost_s = self.interruption_cost_s()
            took = {_CHECKPOINT_S: data["seconds"]} if "seconds" in data else {}
            self._link.tell(step=self._step, saved_step=self._saved, interruption_cost_s=cost_s, metrics=took)
        elif event.kind in ("draining", "faulty"):
            self._link.tell(**{event.kind: tuple(data.get("nodes", ()))})
        elif event.kind == "evaluated":
            self._link.tell(metrics=data.get("metrics", {}))
        elif event.kind == "trial" and "step" in data:
            self._trial(data)

    def _start(self, root: str) -> None:
        if not self._has_run:
            self._link.tell(run=root)
        self._has_run = True

    def _begin_part(self, before: int, done: int = 0) -> None:
        """Count steps from here on in addition to `before`. `done`: steps of this part in earlier attempts."""
        self._before = before
        self._step = self._saved = before + done
        self._pace = Pace()
        self._link.tell(step=self._step, saved_step=self._saved)

    def _continues_from(self, step: int) -> None:
        """Report that the run continues from a checkpoint or from its start, which may be an earlier step."""
        self._step = self._saved = self._before + step
        self._link.tell(step=self._step, saved_step=self._saved, interruption_cost_s=self.interruption_cost_s())

    def _trial(self, data: dict[str, Any]) -> None:
        """Report a sweep after a trial has reached a rung and has saved. Steps are summed over the trials.

        The sweeps of a comparison that have not begun yet are counted as this one.
        """
        if self._startup_s is None:
            self._startup_s = self._clock() - self._began
        step, total = data["step"], data.get("total_steps")
        self._step = self._saved = self._before + step
        known: dict[str, Any] = {name: data[name] for name in ("metrics", "remaining_s") if name in data}
        if total is not None:
            known["total_steps"] = self._before + total * (1 + self._left)
        if self._left and (rest_s := known.pop("remaining_s", 0.0)) and total:
            known["remaining_s"] = rest_s * (1 + self._left * total / (total - step))
        self._link.tell(
            **known, step=self._step, saved_step=self._saved, interruption_cost_s=self.interruption_cost_s()
        )

    def step(self, record: dict[str, Any]) -> None:
        self._inner.step(record)
        if self._startup_s is None:
            self._startup_s = self._clock() - self._began
        self._step, self._step_s = self._before + int(record["step"]), float(record.get("step_time_s", self._step_s))
        metrics = {name: value for name, value in record.items() if name in _METRICS or name.startswith("eval_")}
        known: dict[str, Any] = {"step": self._step, "metrics": metrics}
        eta_s = self._pace.eta_s(record)
        if eta_s is not None:
            known["remaining_s"] = eta_s
        self._link.tell(**known, interruption_cost_s=self.interruption_cost_s())

    def interruption_cost_s(self) -> float:
        """Return the seconds that an interruption now would cost: a new start, and the steps since the checkpoint.

        A run that is *asked* to stop saves first; this is the cost if it cannot save.
        """
        startup_s = self._startup_s if self._startup_s is not None else self._clock() - self._began
        return startup_s + max(self._step - self._saved, 0) * self._step_s

    def close(self) -> None:
        self._inner.close()
