"""The ledger of a sweep, which its driver writes: each trial and each answer, before the driver acts on them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from cluster.errors import SpecError
from jobs.run.outcome import Outcome, write_outcome
from jobs.run.outcome import Status as RunStatus
from jobs.run.paths import JobPaths
from jobs.search.trial import Trial
from jobs.search.trials import Trials
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec
from jobs.spec.sweep import SweepSpec
from jobs.storage import files as storage
from jobs.storage.journal import JournalWriter, Record
from jobs.training.mailbox import Answer

Used = tuple[str, float, float]  # name of a driver, seconds, and seconds times GPUs (without GPUs, CPUs)


class Unanswered(NamedTuple):
    """What a trial was trained before its gang was lost or its driver was killed.

    Attributes:
        step: the step of the newest checkpoint, from which the trial goes on.
        tokens, seconds: of the steps since the newest answer.
    """

    step: int
    tokens: int
    seconds: float


class Ledger(Trials):
    """The ledger as the driver of the sweep writes it. Its methods may be called by any thread."""

    def __init__(self, sweep: SweepSpec, root: str, steps_of: Callable[[Spec], int], tokens_per_run: float) -> None:
        """Read what earlier drivers have written.

        Trials that have failed because gangs were lost, or because a user's metric failed, begin again.

        Args:
            steps_of: returns the optimizer steps of a job. Raises SpecError.
            tokens_per_run: tokens of one whole run of the base.
        """
        super().__init__(sweep, root)
        self.steps_of = steps_of
        total_steps = steps_of(sweep.base)
        self._journal = JournalWriter(JobPaths(root).ledger, "driver")
        if (self.total_steps, self.tokens_per_run) != (total_steps, tokens_per_run):
            self.total_steps, self.tokens_per_run = total_steps, tokens_per_run
            self._journal.append(self._lengths)
        for trial in [trial for trial in self.trials.values() if trial.lost or trial.metric_failed]:
            self._record({"trial": trial.number, "again": True})

    @property
    def _lengths(self) -> Record:
        return {"trial": 0, "total_steps": self.total_steps, "tokens_per_run": self.tokens_per_run}

    def used(self, spent: Used) -> None:
        """Record what this driver has used so far. Never waits for the storage."""
        record = {**self._lengths, "spent": list(spent)}  # the previous release passes over it
        with self._lock:
            self.apply(record)
        self._journal.append(record)

    def applies(self, change: str, digest: str) -> None:
        """Record that a change is about to be applied, so that a later driver does not apply it twice.

        Args:
            change: its name.
            digest: of the changed spec.
        """
        self._record({**self._lengths, "applying": [change, digest]})  # the previous release passes over it

    def set_bound(self, greatest: float | None, tokens: int) -> None:
        """Limit the learning rates of later proposals by the probe's result. `tokens`: tokens of the probe."""
        self._record({"trial": 0, "greatest_rate": greatest, "tokens": tokens})

    def set_later(self) -> None:
        """Compare trials at the later rung: see `compare_later`."""
        self._record({"trial": 0, "later": True})

    def add(self, values: Mapping[str, Any], without_rungs: bool = False, repeats: int | None = None) -> Trial:
        """Add a trial: make its run's directory and store its values.

        Args:
            without_rungs, repeats: see `Trial`.
        """
        with self._lock:
            number = len(self.trials) + 1
            trial = self.new_trial(number, values, without_rungs, repeats=repeats)
            try:
                trial.total_steps = self.steps_of(trial.spec)
            except SpecError as error:  # each value is possible, but not their combination
                trial.impossible = str(error)
            self.trials[number] = trial
            storage.write_bytes(trial.paths.spec, dump_spec(trial.spec))
            facts = {"values": trial.values, "straight": without_rungs, "total_steps": trial.total_steps}
            rare = {"repeats": trial.repeats, "impossible": trial.impossible}
            given = {name: value for name, value in rare.items() if value is not None}
            self._write({"trial": number, **facts, **given})
            return trial

    def began(self, trial: Trial) -> None:
        with self._lock:
            trial.state = "running"

    def interrupted(self, trial: Trial) -> None:
        """Show a trial that has no gang any more as the next driver will find it."""
        with self._lock:
            trial.state = "paused" if trial.step else "waiting"

    def trained(self, trial: Trial, unanswered: Unanswered) -> None:
        """Count what a trial was trained without an answer."""
        self._record({"trial": trial.number, "unanswered": list(unanswered)})

    def answered(self, trial: Trial, answer: Answer, spent: Used | None = None, lost: bool = False) -> None:
        """Update a trial by a gang's answer, and store the answer.

        Args:
            spent: what this driver has used so far.
            lost: it has failed because gangs were lost.
        """
        unknown_before = {"metric_failed"} | (set() if answer.diverged else {"diverged"})  # to the previous release
        record = {"trial": trial.number, "answer": answer.model_dump(mode="json", exclude=unknown_before)}
        rare: Record = {**({} if spent is None else {"spent": list(spent)}), **({"lost": True} if lost else {})}
        rare |= {} if answer.metric_failed is None else {"metric_failed": True}
        with self._lock:
            self._record({**record, **rare})
            if trial.is_over:
                self._conclude(trial)

    def stopped(self, trial: Trial, reason: str) -> None:
        """Record that the search stops a trial for good. Its checkpoints stay."""
        with self._lock:
            if not trial.is_over:
                self._record({"trial": trial.number, "stopped": reason})
                self._conclude(trial)

    def search_has_ended(self) -> None:
        """Write the outcomes of paused trials. They stay paused: with a larger budget, the search may continue them."""
        with self._lock:
            for trial in self.trials.values():
                if trial.state == "paused":
                    trial.reason = f"only other trials continued after step {trial.step}"
                    self._conclude(trial)

    def _record(self, record: Record) -> None:
        """Apply a record, as a later driver will, and store it."""
        with self._lock:
            self.apply(record)
            self._write(record)

    def _write(self, record: Record) -> None:
        self._journal.append(record)
        self._journal.flush()

    def _conclude(self, trial: Trial) -> None:
        """Write the outcome of a trial's run."""
        ends = {"finished": RunStatus.SUCCEEDED, "failed": RunStatus.FAILED}
        write_outcome(
            trial.paths,
            Outcome(
                status=ends.get(trial.state, RunStatus.INTERRUPTED),
                reason=trial.reason,
                diverged=trial.diverged,
                step=trial.step,
                metrics={**trial.metrics, **({} if trial.loss is None else {"loss": trial.loss})},
                evaluated_step=trial.scored_step if trial.metrics else None,
                ended_at=datetime.datetime.now(datetime.UTC),
            ),
        )

    def close(self) -> None:
        self._journal.close()
