"""The status of a sweep, for the live table of `fleetune run` and for `fleetune sweep status`. Light to import.

It is computed from the ledger, which has the answers of the trials, from the driver's events, which tell the trials
that are being trained, and from the metrics of these trials, which tell their steps.
"""

from __future__ import annotations

import contextlib
import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from cluster.errors import StorageError
from cluster.text import first_line
from jobs.run.outcome import Event
from jobs.run.paths import JobPaths
from jobs.run.progress import format_phase
from jobs.search.report.trial_text import format_seeds
from jobs.search.rules.auto import extrapolates
from jobs.search.rules.rungs import cooldown_of, next_stop
from jobs.search.spending import devices_of, seconds_of_a_run
from jobs.search.trial import Trial
from jobs.search.trials import Trials
from jobs.spec.load import load_sweep
from jobs.spec.sweep import SweepSpec
from jobs.storage.journal import Record, newest_record, read_journal

_MOMENTARY: Final = ("room", "search", "changed", "given-back", "rung")  # phases that are over once they are announced
STOPPING: Final = "stopping"


class DriverState:
    """The state of the newest driver of a sweep, from its events.

    Attributes:
        phase: activity other than the training of trials, in words, and its start; None while trials are trained.
        name: the name of the driver, as in `Trials.spent`; None before it starts its gangs, and after the search.
        began_at: the time at which it started its gangs.
        running: numbers of the trials that are being trained.
        planned_steps: optimizer steps of all trials that the budget pays for; None if unknown.
        progress: facts of the newest answer of a trial: step, total_steps and remaining_s of the whole search.
        is_changed: the sweep's spec has changed since `read_status` read it.
    """

    def __init__(self) -> None:
        self.is_changed = False
        self._forget()

    def _forget(self) -> None:
        self.phase: tuple[str, datetime.datetime] | None = None
        self.name: str | None = None
        self.began_at: datetime.datetime | None = None
        self.running: frozenset[int] = frozenset()
        self.planned_steps: int | None = None
        self.progress: Mapping[str, Any] = {}

    def update(self, event: Event) -> None:
        """Update the state by the next event."""
        data, phase = event.data, event.data.get("phase")
        if phase == "start" or event.kind in ("leaderboard", "ended"):  # a new driver, or the search has ended
            self._forget()
        self._update_phase(event)
        if phase == "workers" and "driver" in data:
            self.name, self.began_at, self.planned_steps = data["driver"], event.at, data.get("planned_steps")
        elif phase == "train" and "until" in data:
            self.running |= {data["trial"]}
        elif phase == "changed":
            self.is_changed = True
        elif event.kind == "trial":
            self.running -= {data["trial"]}
            self.progress = data

    def _update_phase(self, event: Event) -> None:
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
            self.phase = (first_line(format_phase(event)), event.at)


def read_driver_state(paths: JobPaths) -> DriverState:
    """Read the driver's state from the events of a sweep. Raises StorageError."""
    state = DriverState()
    for record in read_journal(paths.events):
        state.update(Event.model_validate(record))
    return state


@dataclass(frozen=True)
class SweepStatus:
    """A sweep at one moment.

    Attributes:
        phase: activity other than the training of trials, in words, and its duration in seconds; see `DriverState`.
        trials: the best first. Those that are being trained have their present step, tokens (estimated) and loss. The
            reason of a finalist is the mean over its seeds.
        best: the best trial so far, finished or not; None while no trial has a score.
        tokens: tokens of all trials and of the probe.
        runs: these tokens in units of one whole run of the base; None if unknown.
        used_s: seconds that all drivers have searched.
        remaining_s: estimated seconds to the end; None if not known.
        device_hours: hours of GPUs (without GPUs, of CPUs), including those of the trials that are being trained.
    """

    sweep: SweepSpec
    phase: tuple[str, float] | None
    trials: tuple[Trial, ...]
    best: Trial | None
    tokens: int
    runs: float | None
    used_s: float
    remaining_s: float | None
    device_hours: float

    @property
    def searched(self) -> list[Trial]:
        """The trials that the budget counts: all except repeats."""
        return [trial for trial in self.trials if trial.repeats is None]

    @property
    def running(self) -> list[Trial]:
        """The trials that are being trained, by their numbers."""
        return sorted((trial for trial in self.trials if trial.state == "running"), key=lambda trial: trial.number)


def counts_of(trials: tuple[Trial, ...]) -> dict[str, int]:
    """Count the trials by state; states without a trial are left out."""
    states = ("running", "waiting", "paused", "finished", "stopped", "failed")
    counts = {state: sum(trial.state == state for trial in trials) for state in states}
    return {state: count for state, count in counts.items() if count}


def read_status(trials: Trials, driver: DriverState, now: datetime.datetime) -> SweepStatus:
    """Read new records of the ledger and of the trials that are being trained, and compute the status.

    Raises:
        StorageError: the sweep's directory cannot be read.
    """
    if driver.is_changed and (sweep := load_sweep(JobPaths(trials.root).spec)) is not None:
        driver.is_changed = False
        trials.change(sweep)
    trials.catch_up()
    newest = dict[int, Record]()
    for trial in [trials.trials[number] for number in driver.running if number in trials.trials]:
        with contextlib.suppress(StorageError):  # shown at the next look
            if (record := newest_record(trial.paths.metrics)) is not None:
                newest[trial.number] = record
    return status_of(trials, driver, newest, now)


def status_of(trials: Trials, driver: DriverState, newest: Mapping[int, Record], now: datetime.datetime) -> SweepStatus:
    """Compute the status of a sweep at one moment. Pure.

    Args:
        newest: the newest record of the metrics of each trial that is being trained, by its number.
    """
    found = tuple(_at_present(trials, trial, driver.running, newest) for trial in trials.ranked())
    tokens = trials.probe_tokens + sum(trial.tokens for trial in found)
    used_s = _used_s(trials, driver, now)
    done = sum(trial.step / trial.total_steps for trial in found if trial.total_steps) * trials.total_steps
    phase = driver.phase
    return SweepStatus(
        sweep=trials.sweep,
        phase=None if phase is None else (phase[0], max((now - phase[1]).total_seconds(), 0.0)),
        trials=found,
        best=next((trial for trial in found[:1] if trial.score is not None and trial.state != "failed"), None),
        tokens=tokens,
        runs=tokens / trials.tokens_per_run if trials.tokens_per_run else None,
        used_s=used_s,
        remaining_s=_remaining_s(trials, found, driver, done, newest, used_s),
        device_hours=trials.device_hours + _unrecorded_hours(trials, driver, used_s),
    )


def _at_present(trials: Trials, trial: Trial, running: frozenset[int], newest: Mapping[int, Record]) -> Trial:
    """Return a copy of a trial with its present step, tokens and loss."""
    trial = replace(trial, reason=trial.reason or format_seeds(trials, trial))
    if trial.number not in running or trial.is_over:
        return trial
    record = newest.get(trial.number, {})
    ahead = max(record.get("step", 0) - trial.step, 0)
    tokens = round(ahead * trials.tokens_per_run / trial.total_steps) if ahead else 0
    loss = record["loss"] if ahead else trial.loss
    return replace(trial, state="running", step=trial.step + ahead, tokens=trial.tokens + tokens, loss=loss)


def _used_s(trials: Trials, driver: DriverState, now: datetime.datetime) -> float:
    """Return the seconds searched, including those since the driver's newest answer, which are not recorded yet."""
    if driver.name is None or driver.began_at is None:
        return trials.seconds
    earlier = sum(seconds for name, (seconds, _) in trials.spent.items() if name != driver.name)
    return earlier + max((now - driver.began_at).total_seconds(), 0.0)


def _unrecorded_hours(trials: Trials, driver: DriverState, used_s: float) -> float:
    """Return the hours of the present trials' GPUs (or CPUs) since the driver's newest answer."""
    seconds = max(used_s - trials.seconds, 0.0)
    return seconds * len(driver.running) * devices_of(trials.sweep.base) / 3600


def _remaining_s(
    trials: Trials,
    found: Sequence[Trial],
    driver: DriverState,
    done: float,
    newest: Mapping[int, Record],
    used_s: float,
) -> float | None:
    """Estimate the remaining seconds from the driver's estimate, or at first from step times of running trials.

    Args:
        found: all trials, with the present steps of those that are being trained.
        done: steps of all trials.
    """
    if driver.name is None:
        return None
    budget, left_s = trials.sweep.budget, math.inf
    if budget.minutes is not None:
        left_s = max(budget.minutes * 60 - used_s, _owed_s(trials, found, newest))
    planned, seconds_per_step = driver.progress.get("total_steps", driver.planned_steps), None
    if "remaining_s" in driver.progress:
        left_then = driver.progress["total_steps"] - driver.progress["step"]
        seconds_per_step = driver.progress["remaining_s"] / left_then if left_then else 0.0
    elif times := [record["step_time_s"] for record in newest.values() if record.get("step_time_s")]:
        seconds_per_step = 1 / sum(1 / time for time in times)
    if planned is not None and seconds_per_step is not None:
        left_s = min(left_s, (planned - done) * seconds_per_step)
    return None if math.isinf(left_s) else max(left_s, 0.0)


def _owed_s(trials: Trials, found: Sequence[Trial], newest: Mapping[int, Record]) -> float:
    """Estimate the seconds that a search still takes when its time is used up.

    Running trials are trained to their next score, and `auto` trains one whole run.
    """
    sweep, total = trials.sweep, trials.total_steps
    times = [record["step_time_s"] for record in newest.values() if record.get("step_time_s")]
    step_s = sum(times) / len(times) if times else seconds_of_a_run(trials) / total if total else 0.0
    running = [trial for trial in found if trial.state == "running" and trial.total_steps]
    steps = max((_to_next_score(sweep, trial) for trial in running), default=0)
    if extrapolates(sweep) and not any(trial.is_whole or (trial in running and trial.scores) for trial in found):
        steps += total
    return steps * step_s


def _to_next_score(sweep: SweepSpec, trial: Trial) -> int:
    stop = next_stop(sweep, trial)
    return max(stop - trial.step, 0) + (cooldown_of(sweep, trial.total_steps) if stop < trial.total_steps else 0)


def facts(status: SweepStatus) -> dict[str, Any]:
    """Convert a status to JSON values. Losses may be NaN."""

    def of(trial: Trial) -> dict[str, Any]:
        return {
            "trial": trial.number,
            "values": dict(trial.values),
            "step": trial.step,
            "total_steps": trial.total_steps,
            "loss": trial.loss,
            status.sweep.judged: trial.score,
        }

    best = status.best
    return {
        "phase": None if status.phase is None else status.phase[0],
        "trials": counts_of(status.trials),
        "running": [of(trial) for trial in status.running],
        "best": None if best is None else {**of(best), "scored_step": best.scored_step},
        "tokens": status.tokens,
        "runs": status.runs,
        "device_hours": status.device_hours,
        "budget": status.sweep.budget.model_dump(mode="json", exclude_none=True),
        "used_s": status.used_s,
        "remaining_s": status.remaining_s,
    }
