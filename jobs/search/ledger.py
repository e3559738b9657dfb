"""The record of the trials of a sweep: values, runs, scores and outcomes. Light to import."""

from __future__ import annotations

import datetime
import math
import statistics
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from jobs.errors import SpecError
from jobs.run.outcome import Outcome, write_outcome
from jobs.run.outcome import Status as RunStatus
from jobs.run.paths import JobPaths
from jobs.search.rules.auto import aims, bounded, is_near, prior_of, rate_name, whole_run_rate
from jobs.search.rules.rates import best_rate
from jobs.search.rules.rungs import ETA, going_on
from jobs.search.rules.varying import trial_spec
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec
from jobs.spec.sweep import SweepSpec
from jobs.storage import files as storage
from jobs.storage.journal import JournalReader, JournalWriter
from jobs.training.mailbox import Answer

State = Literal["waiting", "running", "paused", "finished", "stopped", "failed"]
LEDGER = "ledger"
FINALISTS: Final = 2  # trials that are repeated with other seeds
_NO_SCORE = 1e9  # told of a failed trial while no other one has a score


@dataclass
class Trial:
    """One run of the sweep, with its own values."""

    number: int
    values: dict[str, Any]  # by the names of the sweep's space
    spec: Spec
    paths: JobPaths
    total_steps: int = 0  # of this trial when it is trained to its end
    straight: bool = False  # trained to its end without rungs: a whole run of auto, or a repeat
    repeats: int | None = None  # number of the finalist that it repeats with another seed
    impossible: str | None = None  # why its values cannot be trained
    driver: str = ""  # see `JobPaths.driver`
    state: State = "waiting"
    scores: list[tuple[int, float]] = field(default_factory=list)  # (step, judged metric), finite ones
    step: int = 0
    tokens: int = 0
    loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    reason: str | None = None  # why it ended before its last step

    @property
    def score(self) -> float | None:
        """The newest score."""
        return self.scores[-1][1] if self.scores else None

    @property
    def is_over(self) -> bool:
        return self.state in ("finished", "stopped", "failed")

    @property
    def is_whole(self) -> bool:
        """Whether it is one of the whole runs of a sweep with one rung: begun as one, or gone on from the rung."""
        return self.straight or len(self.scores) > 1

    @property
    def rung(self) -> int:
        """Number of its scores."""
        return len(self.scores)


class Trials:
    """All trials of a sweep, read from the ledger in its directory."""

    def __init__(self, sweep: SweepSpec, root: str) -> None:
        """`root` is the sweep's directory. Raises StorageError: the ledger cannot be read."""
        self.sweep, self.root = sweep, root
        self.trials: dict[int, Trial] = {}
        self.total_steps, self.tokens_per_run = 0, 0.0  # of a whole trial; 0 before the first driver has looked
        self.is_bounded, self.probe_tokens = False, 0
        self._greatest: float | None = None  # learning rate, as the probe has found
        self.spent: dict[str, tuple[float, float]] = {}  # by driver: seconds, and seconds times GPUs (or CPUs)
        self._lock = threading.RLock()
        self._records = JournalReader(storage.join(root, LEDGER))
        self.catch_up()

    def catch_up(self) -> None:
        """Read what the driver has written since the last call; the driver must not call it. Raises StorageError."""
        for record in self._records.new():
            self._replay(record)

    def _replay(self, record: Mapping[str, Any]) -> None:
        number = int(record["trial"])
        if "tokens_per_run" in record:
            self.total_steps, self.tokens_per_run = int(record["total_steps"]), float(record["tokens_per_run"])
            return
        if "greatest_rate" in record:
            self.bound(record["greatest_rate"], int(record["tokens"]))
            return
        if "spent" in record:
            driver, seconds, device_seconds = record["spent"]
            self.spent[driver] = (seconds, device_seconds)
        if "values" in record:
            self.trials[number] = self.new_trial(
                number,
                record["values"],
                record.get("straight", False),
                total_steps=record.get("total_steps"),
                repeats=record.get("repeats"),
                impossible=record.get("impossible"),
            )
            return
        trial = self.trials[number]
        if "answer" in record:
            self.take(trial, Answer.model_validate(record["answer"]))
        elif "stopped" in record:
            trial.state, trial.reason = "stopped", record["stopped"]

    def bound(self, greatest: float | None, tokens: int) -> None:
        """Set the probe's result, above which no learning rate is proposed; None if it found no bound."""
        with self._lock:
            self.is_bounded, self.probe_tokens, self._greatest = True, tokens, greatest
            self.change(self.sweep)

    def change(self, sweep: SweepSpec) -> None:
        """Replace the spec by another one of the same search."""
        with self._lock:
            self.sweep = sweep if self._greatest is None else bounded(sweep, self._greatest)

    def new_trial(
        self,
        number: int,
        values: Mapping[str, Any],
        straight: bool,
        *,
        total_steps: int | None = None,
        repeats: int | None = None,
        impossible: str | None = None,
    ) -> Trial:
        """
        Args:
            total_steps: optimizer steps of the trial; None: those of the base.
            repeats, impossible: see `Trial`.
        """
        try:
            spec = trial_spec(self.sweep.base, values)
        except SpecError as error:
            spec, impossible = self.sweep.base, str(error)
        if repeats is not None:
            spec = spec.model_copy(update={"seed": spec.seed + 1 + len(self.repeats_of(self.trials[repeats]))})
        spec = spec.model_copy(update={"name": f"{self.sweep.name[:56]}-{number:04d}"})
        paths = JobPaths(storage.join(self.root, f"{number:04d}"))
        steps = total_steps or self.total_steps
        return Trial(number, dict(values), spec, paths, steps, straight, repeats, impossible)

    def take(self, trial: Trial, answer: Answer) -> None:
        trial.step, trial.tokens = max(trial.step, answer.step), trial.tokens + answer.tokens
        if answer.status == "stopped":  # the sweep was: the trial goes on with it
            trial.state = "paused"
            return
        trial.loss, trial.metrics = answer.loss, answer.metrics or trial.metrics
        trial.reason = answer.reason if answer.status == "failed" else self._unscored(answer)
        if trial.reason is not None:
            trial.state = "failed"
            return
        trial.scores.append((answer.step, answer.judged[self.sweep.judged]))
        trial.state = "finished" if answer.status == "finished" else "paused"

    def _unscored(self, answer: Answer) -> str | None:
        """Why an answer has no score; None if it has one."""
        score = answer.judged.get(self.sweep.judged)
        if score is None:
            known = ", ".join(sorted(answer.judged)) or "nothing"
            return f"the job reports no {self.sweep.judged}: it reports {known}"
        return None if math.isfinite(score) else f"{self.sweep.judged} was {score} after step {answer.step}"

    @property
    def searched(self) -> list[Trial]:
        """All trials except repeats, which train a finalist with another seed."""
        return [trial for trial in list(self.trials.values()) if trial.repeats is None]

    def repeats_of(self, trial: Trial) -> list[Trial]:
        return [one for one in list(self.trials.values()) if one.repeats == trial.number]

    def scores_of_seeds(self, trial: Trial) -> list[float]:
        """Final scores of a finished trial and of its repeats."""
        every = [trial, *self.repeats_of(trial)]
        return [one.score for one in every if one.state == "finished" and one.score is not None]

    def ranked(self) -> list[Trial]:
        """Sort the trials, best first: finished ones, then by progress; trials without a score come last.

        A finalist is ranked by the mean over its seeds, before trials with only one seed, because the best of many
        single scores is partly luck. Its repeats follow it.
        """
        with self._lock:
            return sorted(self.trials.values(), key=self._rank)

    def _rank(self, trial: Trial) -> tuple[Any, ...]:
        sign = 1.0 if self.sweep.lower_is_better else -1.0
        first = trial if trial.repeats is None else self.trials[trial.repeats]
        seeds = self.scores_of_seeds(first) if trial.state == "finished" else []
        score = statistics.fmean(seeds) if len(seeds) > 1 else trial.score or 0.0
        return (
            trial.state == "failed" or trial.score is None,
            -(trial.scores[-1][0] / trial.total_steps if trial.scores and trial.total_steps else 0.0),
            len(seeds) < 2,
            sign * score,
            first.number,
            trial.number,
        )

    @property
    def finalists(self) -> list[Trial]:
        """The finished trials that are repeated with other seeds, best first."""
        sign = 1.0 if self.sweep.lower_is_better else -1.0
        finished = [trial for trial in self.searched if trial.state == "finished" and trial.score is not None]
        return sorted(finished, key=lambda trial: sign * (trial.score or 0.0))[:FINALISTS]

    def to_repeat(self) -> Trial | None:
        """The finalist that is repeated next; None if each has the number of seeds that the sweep asks for."""
        short = [trial for trial in self.finalists if len(self.repeats_of(trial)) + 1 < self.sweep.seeds]
        return min(short, key=lambda trial: len(self.repeats_of(trial)), default=None)

    @property
    def repeats_left(self) -> int:
        """Most repeats that have not ended or have not started."""
        ended = sum(trial.is_over for trial in list(self.trials.values()) if trial.repeats is not None)
        return max(FINALISTS * (self.sweep.seeds - 1) - ended, 0)

    @property
    def going_on(self) -> list[int]:
        """Numbers of the trials that go on from a rung, once all have begun; see `jobs.search.rules.rungs.going_on`."""
        if self.sweep.scheduler != "halving":  # Ray Tune lets them go on
            return [trial.number for trial in self.searched if trial.state == "paused" and trial.scores]
        compared = [trial for trial in list(self.trials.values()) if not trial.straight]
        if aims(self.sweep):
            return self._nearest_to_target(compared)
        return going_on(compared, len(self.sweep.rungs), ETA, self.sweep.lower_is_better)

    @property
    def target(self) -> float:
        """The learning rate for a whole run, from the scores at the rung; the prior's rate if there are no scores."""
        name, sign = str(rate_name(self.sweep)), 1.0 if self.sweep.lower_is_better else -1.0
        scored = [trial for trial in self.searched if not trial.straight and trial.scores]
        if not scored:
            return float(prior_of(self.sweep)[name])
        return whole_run_rate(
            self.sweep, best_rate({trial.values[name]: sign * trial.scores[0][1] for trial in scored})
        )

    def _nearest_to_target(self, compared: list[Trial]) -> list[int]:
        """The number of the paused trial near the target, if all have reached the rung and no whole run is near it."""
        paused = [trial for trial in compared if not trial.is_over]
        if not paused or any(not trial.scores for trial in paused):
            return []
        name, target = str(rate_name(self.sweep)), self.target
        if any(trial.is_whole and is_near(trial.values[name], target) for trial in self.searched):
            return []
        nearest = min(paused, key=lambda trial: abs(math.log(trial.values[name] / target)))
        return [nearest.number] if is_near(nearest.values[name], target) else []

    @property
    def best(self) -> Trial | None:
        """The best finished trial, which is no repeat."""
        first = next((trial for trial in self.ranked() if trial.repeats is None), None)
        return first if first is not None and first.state == "finished" else None

    def told_as(self, trial: Trial) -> float:
        """The value that the sampler gets for a trial: its score, or the worst known score if it failed.

        Optuna takes no NaN, and a number far from all others would spoil a Gaussian process.
        """
        worst = max if self.sweep.lower_is_better else min
        scores = [score for one in list(self.trials.values()) for _, score in one.scores]
        if trial.state == "failed" or trial.score is None:
            return worst(scores, default=_NO_SCORE if self.sweep.lower_is_better else -_NO_SCORE)
        return trial.score

    @property
    def seconds(self) -> float:
        """Seconds that all drivers of the sweep have searched."""
        return sum(seconds for seconds, _ in self.spent.values())

    @property
    def device_hours(self) -> float:
        """Hours of GPUs that the gangs have held; without GPUs, hours of CPUs."""
        return sum(each for _, each in self.spent.values()) / 3600

    @property
    def tokens(self) -> int:
        """Tokens of all trials and of the probe."""
        return self.probe_tokens + sum(trial.tokens for trial in self.trials.values())


class Ledger(Trials):
    """The ledger as the driver of the sweep writes it. Its methods may be called by any thread."""

    def __init__(self, sweep: SweepSpec, root: str, steps_of: Callable[[Spec], int], tokens_per_run: float) -> None:
        """Read what earlier drivers have written.

        Args:
            steps_of: returns the optimizer steps of a job.
            tokens_per_run: tokens of the base job.
        """
        super().__init__(sweep, root)
        self.steps_of = steps_of
        total_steps = steps_of(sweep.base)
        self._journal = JournalWriter(storage.join(root, LEDGER), "driver")
        if (self.total_steps, self.tokens_per_run) != (total_steps, tokens_per_run):
            self.total_steps, self.tokens_per_run = total_steps, tokens_per_run
            self._journal.append({"trial": 0, "total_steps": total_steps, "tokens_per_run": tokens_per_run})

    def set_bound(self, greatest: float | None, tokens: int) -> None:
        """Call `bound` and record it. `tokens`: tokens of the probe."""
        with self._lock:
            self.bound(greatest, tokens)
            self._journal.append({"trial": 0, "greatest_rate": greatest, "tokens": tokens})
            self._journal.flush()

    def add(self, values: Mapping[str, Any], straight: bool = False, repeats: int | None = None) -> Trial:
        """Add a trial: make its run's directory and store its values.

        Args:
            straight, repeats: see `Trial`.
        """
        with self._lock:
            number = len(self.trials) + 1
            trial = self.new_trial(number, values, straight, repeats=repeats)
            try:
                trial.total_steps = self.steps_of(trial.spec)
            except SpecError as error:  # each value is possible, but not their combination
                trial.impossible = str(error)
            self.trials[number] = trial
            storage.write_bytes(trial.paths.spec, dump_spec(trial.spec))
            record = {"trial": number, "values": trial.values, "straight": straight, "total_steps": trial.total_steps}
            rare = {"repeats": trial.repeats, "impossible": trial.impossible}
            self._journal.append(record | {name: value for name, value in rare.items() if value is not None})
            self._journal.flush()
            return trial

    def began(self, trial: Trial) -> None:
        with self._lock:
            trial.state = "running"

    def answered(self, trial: Trial, answer: Answer, spent: tuple[str, float, float] | None = None) -> None:
        """Record a gang's answer, and store it.

        Args:
            spent: use of this driver so far: its name, seconds, and seconds times GPUs (or CPUs).
        """
        with self._lock:
            self.take(trial, answer)
            record = {"trial": trial.number, "answer": answer.model_dump(mode="json")}
            if spent is not None:
                self.spent[spent[0]] = spent[1:]
                record["spent"] = list(spent)
            self._journal.append(record)
            self._journal.flush()
            if trial.is_over:
                self._conclude(trial)

    def stopped(self, trial: Trial, reason: str) -> None:
        """Record that the search does not continue a trial; its checkpoints stay."""
        with self._lock:
            if not trial.is_over:
                trial.state, trial.reason = "stopped", reason
                self._conclude(trial)
                self._journal.append({"trial": trial.number, "stopped": reason})
                self._journal.flush()

    def search_has_ended(self) -> None:
        """Write the outcomes of paused trials. They stay paused: with a larger budget, the search may continue them."""
        with self._lock:
            for trial in self.trials.values():
                if trial.state == "paused":
                    trial.reason = f"others went on after step {trial.step}"
                    self._conclude(trial)

    def _conclude(self, trial: Trial) -> None:
        """Write the outcome of a trial's run."""
        ends = {"finished": RunStatus.SUCCEEDED, "failed": RunStatus.FAILED}
        write_outcome(
            trial.paths,
            Outcome(
                status=ends.get(trial.state, RunStatus.INTERRUPTED),
                reason=trial.reason,
                step=trial.step,
                metrics={**trial.metrics, **({} if trial.loss is None else {"loss": trial.loss})},
                evaluated_step=trial.scores[-1][0] if trial.scores and trial.metrics else None,
                ended_at=datetime.datetime.now(datetime.UTC),
            ),
        )

    def close(self) -> None:
        self._journal.close()
