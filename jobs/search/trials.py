"""All trials of a sweep, as its ledger describes them: values, runs, scores and outcomes. Light to import."""

from __future__ import annotations

import math
import statistics
import threading
from collections.abc import Mapping
from typing import Any

from cluster.errors import SpecError
from jobs.run.metric_names import missing_metric
from jobs.run.paths import JobPaths
from jobs.search.rules.auto import (
    LATER,
    PROBE_STEPS,
    bounded,
    extrapolates,
    further_rate,
    in_space,
    is_near,
    is_too_early,
    prior_of,
    probe_steps,
    varied_rate_name,
    whole_run_rate,
)
from jobs.search.rules.budget import (
    FINALISTS,
    BudgetPlan,
    budget_plan,
    most_repeats,
    whole_runs_allowed,
    whole_runs_begun,
)
from jobs.search.rules.rates import UP, best_rate
from jobs.search.rules.rungs import ETA, going_on, stops_of
from jobs.search.rules.varying import trial_spec
from jobs.search.trial import Trial
from jobs.spec.sweep import SweepSpec
from jobs.storage.journal import JournalReader
from jobs.training.mailbox import Answer

_NO_SCORE = 1e9  # stands for the score of a failed trial while no other trial has a score


class Trials:
    """All trials of a sweep, read from the ledger in its directory."""

    def __init__(self, sweep: SweepSpec, root: str) -> None:
        """Read the ledger in the sweep's directory `root`. Raises StorageError."""
        self.sweep, self.root = sweep, root
        self.trials: dict[int, Trial] = {}
        self.total_steps, self.tokens_per_run = 0, 0.0  # of one whole run of the base; 0 before the first driver
        self.is_bounded, self.probe_tokens = False, 0  # whether the probe has ended, and its tokens
        self.greatest_rate: float | None = None  # the greatest learning rate, by the probe
        self.base_score: float | None = None  # score of the model before training
        self.is_later = False  # trials are compared at the later rung: nothing had been learned at the first one
        self.spent: dict[str, tuple[float, float]] = {}  # by driver: seconds, and seconds times GPUs (or CPUs)
        self.applying: tuple[str, str] | None = None  # the newest change: its name, and a digest of the changed spec
        self._lock = threading.RLock()
        self._records = JournalReader(JobPaths(root).ledger)
        self.catch_up()

    def catch_up(self) -> None:
        """Read what the driver has written since the last call. The driver itself never calls this.

        Raises:
            StorageError: the ledger cannot be read.
        """
        for record in self._records.new():
            self.apply(record)

    def apply(self, record: Mapping[str, Any]) -> None:
        """Apply one record of the ledger."""
        number = int(record["trial"])
        if "spent" in record:
            driver, seconds, device_seconds = record["spent"]
            self.spent[driver] = (seconds, device_seconds)
        if "applying" in record:
            self.applying = tuple(record["applying"])
        if "tokens_per_run" in record:
            self.total_steps, self.tokens_per_run = int(record["total_steps"]), float(record["tokens_per_run"])
            return
        if "greatest_rate" in record:  # the probe has ended; None: it found no limit
            self.is_bounded, self.probe_tokens = True, int(record["tokens"])
            self.greatest_rate = record["greatest_rate"]
            self.change(self.sweep)
            return
        if "later" in record:
            self.compare_later()
            return
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
            trial.lost, trial.metric_failed = bool(record.get("lost")), bool(record.get("metric_failed"))
        elif "unanswered" in record:
            step, tokens, seconds = record["unanswered"]
            trial.step, trial.tokens, trial.seconds = step, trial.tokens + tokens, trial.seconds + seconds
        elif "again" in record:
            trial.state, trial.reason = "paused" if trial.step else "waiting", None
            trial.lost = trial.metric_failed = False
        elif "stopped" in record:
            trial.state, trial.reason = "stopped", record["stopped"]

    def change(self, sweep: SweepSpec) -> None:
        """Continue with another spec of the same search."""
        with self._lock:
            self.sweep = self.as_searched(sweep)

    def as_searched(self, sweep: SweepSpec) -> SweepSpec:
        """Return a spec with the results of the search so far: the greatest learning rate, and the later rung."""
        if self.is_later and sweep.rungs is None:
            sweep = sweep.model_copy(update={"rungs": LATER})
        return sweep if self.greatest_rate is None else bounded(sweep, self.greatest_rate)

    @property
    def probe_steps(self) -> float:
        """The cost of the probe, in optimizer steps; 0 if there is none."""
        return (PROBE_STEPS if self.probe_tokens else 0.0) if self.is_bounded else probe_steps(self.sweep)

    @property
    def is_too_early(self) -> bool:
        """Whether nothing has been learned at the rung (`auto.is_too_early`), and no whole run has begun."""
        if any(trial.is_whole for trial in self.searched):
            return False
        return is_too_early(self.sweep, self.base_score, [one.scores[0][1] for one in self.searched if one.scores])

    def compare_later(self) -> None:
        """Compare trials at the later rung. The scores at the first one are dropped: their order is noise."""
        with self._lock:
            self.is_later = True
            self.change(self.sweep)
            for trial in self.searched:
                trial.scores = [one for one in trial.scores if not self._is_before_the_rung(trial, one[0])]

    @property
    def moved_to_later_rung(self) -> list[int]:
        """Numbers of the trials that are paused at the first rung and will continue to the later one."""
        paused = [trial.number for trial in self.searched if trial.state == "paused" and not trial.scores]
        return paused if self.is_later else []

    def _is_before_the_rung(self, trial: Trial, step: int) -> bool:
        """Whether `step` is before the trial's present first stop, since the later rung has replaced the first one."""
        return self.is_later and step < stops_of(self.sweep, trial.total_steps, trial.without_rungs)[0]

    def new_trial(
        self,
        number: int,
        values: Mapping[str, Any],
        without_rungs: bool,
        *,
        total_steps: int | None = None,
        repeats: int | None = None,
        impossible: str | None = None,
    ) -> Trial:
        """Make a trial, without adding it.

        Args:
            total_steps: optimizer steps of the trial; None: those of the base.
            without_rungs, repeats, impossible: see `Trial`.
        """
        try:
            spec = trial_spec(self.sweep.base, values)
        except SpecError as error:
            spec, impossible = self.sweep.base, str(error)
        if repeats is not None:
            spec = spec.model_copy(update={"seed": spec.seed + 1 + len(self.repeats_of(self.trials[repeats]))})
        spec = spec.model_copy(update={"name": f"{self.sweep.name[:56]}-{number:04d}"})
        paths = JobPaths(self.root).trial(number)
        steps = total_steps or self.total_steps
        return Trial(number, dict(values), spec, paths, steps, without_rungs, repeats, impossible)

    def take(self, trial: Trial, answer: Answer) -> None:
        """Update a trial by a gang's answer."""
        trial.step, trial.tokens = max(trial.step, answer.step), trial.tokens + answer.tokens
        trial.seconds += answer.seconds
        if answer.status == "stopped":  # the sweep was stopped: the trial continues with it
            trial.state = "paused"
            return
        trial.loss, trial.metrics = answer.loss, answer.metrics or trial.metrics
        trial.reason = answer.reason if answer.status == "failed" else self._unscored(answer)
        if trial.reason is not None:
            trial.state = "failed"
            is_loss = self.sweep.judged in ("eval_loss", "eval_perplexity")  # another metric may be nan by itself
            trial.diverged = answer.diverged or (is_loss and self.sweep.judged in answer.judged)
            return
        if self.base_score is None:
            self.base_score = answer.base.get(self.sweep.judged)
        if not self._is_before_the_rung(trial, answer.step):
            trial.scores.append((answer.step, answer.judged[self.sweep.judged]))
        trial.state = "finished" if answer.status == "finished" else "paused"

    def _unscored(self, answer: Answer) -> str | None:
        """Return why an answer has no score; None if it has one."""
        score = answer.judged.get(self.sweep.judged)
        if score is None:
            return missing_metric(self.sweep.judged, answer.judged)
        return None if math.isfinite(score) else f"{self.sweep.judged} was {score} after step {answer.step}"

    @property
    def searched(self) -> list[Trial]:
        """All trials except repeats, which train a finalist with another seed."""
        return [trial for trial in list(self.trials.values()) if trial.repeats is None]

    def repeats_of(self, trial: Trial) -> list[Trial]:
        return [one for one in list(self.trials.values()) if one.repeats == trial.number]

    def scores_of_seeds(self, trial: Trial) -> list[float]:
        """Return the final scores of a trial and of its repeats, of those that are finished."""
        every = [trial, *self.repeats_of(trial)]
        return [one.score for one in every if one.state == "finished" and one.score is not None]

    def ranked(self) -> list[Trial]:
        """Return all trials, the best first.

        Trials that were scored later in their run come first, and trials without a score last. Among those with the
        same number of steps, a finalist is ranked by the mean over its seeds and before trials with one seed, because
        the best of many single scores is partly luck. Its repeats follow it.
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
            -((trial.scored_step or 0) / trial.total_steps if trial.total_steps else 0.0),
            len(seeds) < 2,
            sign * score,
            first.number,
            trial.number,
        )

    @property
    def finalists(self) -> list[Trial]:
        """The finished trials that are repeated with other seeds, best first. No two of them have the same values."""
        sign = 1.0 if self.sweep.lower_is_better else -1.0
        finished = [trial for trial in self.searched if trial.state == "finished" and trial.score is not None]
        found = list[Trial]()
        for trial in sorted(finished, key=lambda trial: sign * (trial.score or 0.0)):
            if all(trial.values != other.values for other in found):
                found.append(trial)
        return found[:FINALISTS]

    def to_repeat(self) -> Trial | None:
        """Return the finalist that is repeated next; None if each has the number of seeds that the sweep asks for."""
        short = [trial for trial in self.finalists if len(self.repeats_of(trial)) + 1 < self.sweep.seeds]
        return min(short, key=lambda trial: len(self.repeats_of(trial)), default=None)

    @property
    def repeats_to_begin(self) -> int:
        """The number of repeats of the present finalists that have not begun."""
        return sum(max(self.sweep.seeds - 1 - len(self.repeats_of(trial)), 0) for trial in self.finalists)

    @property
    def repeats_left(self) -> int:
        """The largest number of repeats that still run or have not begun."""
        ended = sum(trial.is_over for trial in list(self.trials.values()) if trial.repeats is not None)
        return max(most_repeats(self.sweep, self.plan) - ended, 0)

    @property
    def plan(self) -> BudgetPlan:
        """What the budget pays for, given the trials so far."""
        return budget_plan(self.sweep, self.total_steps, self.tokens_per_run, self.probe_steps, self.searched)

    @property
    def going_on(self) -> list[int]:
        """Numbers of the trials that continue from a rung, once all have begun: see `rules.rungs.going_on`."""
        if self.sweep.scheduler != "halving":  # Ray Tune decides which ones continue
            return [trial.number for trial in self.searched if trial.state == "paused" and trial.scores]
        compared = [trial for trial in list(self.trials.values()) if not trial.without_rungs]
        if extrapolates(self.sweep):
            return self._nearest_to_target(compared)
        return going_on(compared, len(self.sweep.rung_shares), ETA, self.sweep.lower_is_better)

    @property
    def target(self) -> float:
        """The learning rate for a whole run, from the scores at the rung; the prior's rate if there are no scores.

        It is clearly below each rate at which a trial has diverged after its rung.
        """
        name, sign = varied_rate_name(self.sweep), 1.0 if self.sweep.lower_is_better else -1.0
        compared = [one for one in self.searched if not one.without_rungs and (one.scores or one.diverged)]
        scores = {one.values[name]: sign * one.scores[0][1] if one.scores else math.inf for one in compared}
        has_score = any(map(math.isfinite, scores.values()))
        rate = whole_run_rate(self.sweep, best_rate(scores)) if has_score else float(prior_of(self.sweep)[name])
        after_rung = [trial for trial in self.searched if trial.diverged and (trial.without_rungs or trial.scores)]
        below = [trial.values[name] / UP for trial in after_rung]
        return float(in_space(self.sweep, {name: min([rate, *below])})[name])

    @property
    def best_values(self) -> dict[str, Any]:
        """The values of the best trial; while no trial is finished, those of a first whole run of `auto`."""
        if (best := self.best) is not None:
            return best.values
        return {**prior_of(self.sweep), varied_rate_name(self.sweep): self.target}

    @property
    def has_further_rate(self) -> bool:
        """Whether one more whole run can have a rate that none has had."""
        name, target = varied_rate_name(self.sweep), self.target
        tried = [trial.values[name] for trial in self.searched if trial.is_whole]
        return not any(is_near(rate, target) for rate in tried) or further_rate(self.sweep, target, tried) is not None

    def _nearest_to_target(self, compared: list[Trial]) -> list[int]:
        """Return the number of the paused trial nearest to the target, as a list; empty if none continues now.

        One continues if it is near the target, all have reached the rung, no whole run is near the target yet, and the
        budget pays for one more whole run. If all of them have failed, one more than that continues.
        """
        paused = [trial for trial in compared if not trial.is_over]
        if not paused or any(not trial.scores for trial in paused):
            return []
        if whole_runs_begun(self.searched, self.plan) >= whole_runs_allowed(self.searched, self.plan):
            return []
        name, target = varied_rate_name(self.sweep), self.target
        if any(trial.is_whole and is_near(trial.values[name], target) for trial in self.searched):
            return []
        nearest = min(paused, key=lambda trial: abs(math.log(trial.values[name] / target)))
        return [nearest.number] if is_near(nearest.values[name], target) else []

    @property
    def best(self) -> Trial | None:
        """The best finished trial that is not a repeat."""
        first = next((trial for trial in self.ranked() if trial.repeats is None), None)
        return first if first is not None and first.state == "finished" else None

    def finite_score(self, trial: Trial) -> float:
        """Return the score of a trial for Ray Tune, which compares numbers only: the worst known score if it failed."""
        if trial.state != "failed" and trial.score is not None:
            return trial.score
        worst, none = (max, _NO_SCORE) if self.sweep.lower_is_better else (min, -_NO_SCORE)
        return worst((score for one in list(self.trials.values()) for _, score in one.scores), default=none)

    @property
    def seconds(self) -> float:
        """Seconds that all drivers of the sweep have searched."""
        return sum(seconds for seconds, _ in self.spent.values())

    @property
    def device_hours(self) -> float:
        """Hours for which gangs have held GPUs; without GPUs, CPUs."""
        return sum(each for _, each in self.spent.values()) / 3600

    @property
    def tokens(self) -> int:
        """Tokens of all trials and of the probe."""
        return self.probe_tokens + sum(trial.tokens for trial in self.trials.values())
