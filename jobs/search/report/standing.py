"""The progress of a sweep, as the live table of `fleetune run` and `fleetune sweep status` show it. Light to import.

The ledger has the answers of the trials. The events of the driver tell which trials are being trained, and the metrics
of these trials tell how far they are.
"""

from __future__ import annotations

import contextlib
import datetime
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cluster.text import first_line
from jobs.errors import StorageError
from jobs.run.outcome import Event
from jobs.run.paths import JobPaths
from jobs.run.progress import phase_words
from jobs.search.report.trial_text import seeds_words
from jobs.search.trial import Trial
from jobs.search.trials import Trials
from jobs.spec.load import load_sweep
from jobs.spec.sweep import Budget
from jobs.storage.journal import Record, newest_record, read_journal

_MOMENTARY: Final = ("room", "search", "changed", "given-back", "rung")  # phases that are over when they are told
STOPPING: Final = "stopping"


class Heard:
    """The state of the newest driver, from its events.

    Attributes:
        phase: activity other than the training of trials, in words, and its start; None while trials are trained.
        driver: its name, as in `Trials.spent`; None before it starts its gangs, and after the search.
        began_at: when it started its gangs.
        running: numbers of the trials that are being trained.
        planned_steps: optimizer steps of all trials that the budget pays for; None if unknown.
        progress: facts of the newest answer of a trial: step, total_steps and remaining_s of the whole search.
        is_changed: the sweep's spec has changed since `look` read it.
    """

    def __init__(self) -> None:
        self.is_changed = False
        self._forget()

    def _forget(self) -> None:
        self.phase: tuple[str, datetime.datetime] | None = None
        self.driver: str | None = None
        self.began_at: datetime.datetime | None = None
        self.running: frozenset[int] = frozenset()
        self.planned_steps: int | None = None
        self.progress: Mapping[str, Any] = {}

    def hear(self, event: Event) -> None:
        """Update the state by an event."""
        data, phase = event.data, event.data.get("phase")
        if phase == "start" or event.kind in ("leaderboard", "ended"):  # a new driver, or the search has ended
            self._forget()
        self._enter(event)
        if phase == "workers" and "driver" in data:
            self.driver, self.began_at, self.planned_steps = data["driver"], event.at, data.get("planned_steps")
        elif phase == "train" and "until" in data:
            self.running |= {data["trial"]}
        elif phase == "changed":
            self.is_changed = True
        elif event.kind == "trial":
            self.running -= {data["trial"]}
            self.progress = data

    def _enter(self, event: Event) -> None:
        phase = event.data.get("phase")
        if event.kind == "leaderboard":
            self.phase = ("ending", event.at)
        elif event.kind == "stopping":
            self.phase = (STOPPING, event.at)
        elif self.phase is not None and self.phase[0] == STOPPING:
            return
        elif event.kind == "trial" or phase == "train":
            self.phase = None
        elif event.kind == "phase" and phase not in _MOMENTARY:
            self.phase = (first_line(phase_words(event)), event.at)


def heard_of(paths: JobPaths) -> Heard:
    """Read the driver's state from the events of a sweep. Raises StorageError."""
    heard = Heard()
    for record in read_journal(paths.events):
        heard.hear(Event.model_validate(record))
    return heard


@dataclass(frozen=True)
class TrialNow:
    """A trial at one moment.

    Attributes:
        values: by the names of the sweep's space.
        step, total_steps: optimizer steps that are done, and those of the whole trial.
        tokens: while it is being trained, estimated from its steps.
        loss: newest training loss.
        score: newest held-out score, which was taken after step `scored_step`.
        why: why it ended early; or a finalist's mean over its seeds.
    """

    number: int
    values: Mapping[str, Any]
    state: str
    step: int
    total_steps: int
    tokens: int
    loss: float | None
    score: float | None
    scored_step: int | None
    why: str
    is_repeat: bool = False  # of a finalist, beyond the budget


@dataclass(frozen=True)
class Standing:
    """A sweep at one moment.

    Attributes:
        phase: activity other than the training of trials, in words, and its duration in seconds; see `Heard`.
        names: of the fields that vary.
        judged: name of the score.
        trials: the best first.
        best: the best trial so far, trained to its end or not; None while no trial has a score.
        tokens: tokens of all trials and of the probe.
        runs: these tokens in units of one whole run of the base; None if unknown.
        used_s: seconds that all drivers have searched.
        remaining_s: estimated seconds to the end; None if not known.
        device_hours: hours of GPUs (without GPUs, of CPUs) until the newest answer of a trial.
    """

    phase: tuple[str, float] | None
    names: tuple[str, ...]
    judged: str
    trials: tuple[TrialNow, ...]
    best: TrialNow | None
    budget: Budget
    tokens: int
    runs: float | None
    used_s: float
    remaining_s: float | None
    device_hours: float

    @property
    def searched(self) -> list[TrialNow]:
        """The trials without repeats, which the budget counts."""
        return [trial for trial in self.trials if not trial.is_repeat]

    @property
    def running(self) -> list[TrialNow]:
        """The trials that are being trained, by their numbers."""
        return sorted((trial for trial in self.trials if trial.state == "running"), key=lambda trial: trial.number)

    @property
    def counts(self) -> dict[str, int]:
        """Number of trials by state."""
        return counts_of(self.trials)


def counts_of(trials: tuple[TrialNow, ...]) -> dict[str, int]:
    """Number of trials by state; states without a trial are left out."""
    states = ("running", "waiting", "paused", "finished", "stopped", "failed")
    counts = {state: sum(trial.state == state for trial in trials) for state in states}
    return {state: count for state, count in counts.items() if count}


def look(trials: Trials, heard: Heard, now: datetime.datetime) -> Standing:
    """Read what is new of the ledger and of the trials that are being trained.

    Raises:
        StorageError: the sweep's directory cannot be read.
    """
    running = heard.running
    if heard.is_changed and (sweep := load_sweep(JobPaths(trials.root).spec)) is not None:
        heard.is_changed = False
        trials.change(sweep)
    trials.catch_up()
    newest = dict[int, Record]()
    for trial in [trials.trials[number] for number in running if number in trials.trials]:
        with contextlib.suppress(StorageError):  # shown at the next look
            if (record := newest_record(trial.paths.metrics)) is not None:
                newest[trial.number] = record
    return standing_of(trials, heard, newest, now)


def standing_of(trials: Trials, heard: Heard, newest: Mapping[int, Record], now: datetime.datetime) -> Standing:
    """Compute the sweep's standing at one moment. Pure.

    Args:
        newest: the newest record of the metrics, by the number of a trial that is being trained.
    """
    found = tuple(_trial_now(trials, trial, heard.running, newest) for trial in trials.ranked())
    tokens = trials.probe_tokens + sum(trial.tokens for trial in found)
    used_s = _used_s(trials, heard, now)
    done = sum(trial.step / trial.total_steps for trial in found if trial.total_steps) * trials.total_steps
    phase = heard.phase
    return Standing(
        phase=None if phase is None else (phase[0], max((now - phase[1]).total_seconds(), 0.0)),
        names=tuple(trials.sweep.dimensions),
        judged=trials.sweep.judged,
        trials=found,
        best=next((trial for trial in found[:1] if trial.score is not None and trial.state != "failed"), None),
        budget=trials.sweep.budget,
        tokens=tokens,
        runs=tokens / trials.tokens_per_run if trials.tokens_per_run else None,
        used_s=used_s,
        remaining_s=_remaining_s(trials.sweep.budget, heard, done, newest, used_s),
        device_hours=trials.device_hours,
    )


def _trial_now(trials: Trials, trial: Trial, running: frozenset[int], newest: Mapping[int, Record]) -> TrialNow:
    trains = trial.number in running and not trial.is_over
    record = newest.get(trial.number, {}) if trains else {}
    ahead = max(record.get("step", 0) - trial.step, 0)
    per_step = trials.tokens_per_run / trial.total_steps if trial.total_steps else 0.0
    return TrialNow(
        number=trial.number,
        values=trial.values,
        state="running" if trains else trial.state,
        step=trial.step + ahead,
        total_steps=trial.total_steps,
        tokens=trial.tokens + round(ahead * per_step),
        loss=record["loss"] if ahead else trial.loss,
        score=trial.score,
        scored_step=trial.scores[-1][0] if trial.scores else None,
        why=trial.reason or seeds_words(trials, trial),
        is_repeat=trial.repeats is not None,
    )


def _used_s(trials: Trials, heard: Heard, now: datetime.datetime) -> float:
    """Return the seconds searched, including those since the driver's newest answer, which are not recorded yet."""
    if heard.driver is None or heard.began_at is None:
        return trials.seconds
    earlier = sum(seconds for driver, (seconds, _) in trials.spent.items() if driver != heard.driver)
    return earlier + max((now - heard.began_at).total_seconds(), 0.0)


def _remaining_s(
    budget: Budget, heard: Heard, done: float, newest: Mapping[int, Record], used_s: float
) -> float | None:
    """Estimate the remaining seconds from the driver's estimate, or at first from step times of running trials."""
    if heard.driver is None:
        return None
    left_s = budget.minutes * 60 - used_s if budget.minutes is not None else math.inf
    planned, seconds_per_step = heard.progress.get("total_steps", heard.planned_steps), None
    if "remaining_s" in heard.progress:
        left_then = heard.progress["total_steps"] - heard.progress["step"]
        seconds_per_step = heard.progress["remaining_s"] / left_then if left_then else 0.0
    elif times := [record["step_time_s"] for record in newest.values() if record.get("step_time_s")]:
        seconds_per_step = 1 / sum(1 / time for time in times)
    if planned is not None and seconds_per_step is not None:
        left_s = min(left_s, (planned - done) * seconds_per_step)
    return None if math.isinf(left_s) else max(left_s, 0.0)


def facts(standing: Standing) -> dict[str, Any]:
    """Convert a standing to JSON values."""

    def of(trial: TrialNow) -> dict[str, Any]:
        return {
            "trial": trial.number,
            "values": dict(trial.values),
            "step": trial.step,
            "total_steps": trial.total_steps,
            "loss": _finite(trial.loss),
            standing.judged: trial.score,
        }

    best = standing.best
    return {
        "phase": None if standing.phase is None else standing.phase[0],
        "trials": standing.counts,
        "running": [of(trial) for trial in standing.running],
        "best": None if best is None else {**of(best), "scored_step": best.scored_step},
        "tokens": standing.tokens,
        "runs": standing.runs,
        "device_hours": standing.device_hours,
        "budget": standing.budget.model_dump(mode="json", exclude_none=True),
        "used_s": standing.used_s,
        "remaining_s": standing.remaining_s,
    }


def _finite(value: float | None) -> float | None:
    """Replace NaN and infinity, which JSON cannot express, by None."""
    return value if value is not None and math.isfinite(value) else None
