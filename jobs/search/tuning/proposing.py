"""Proposes the values of the next trial, by Optuna's samplers through Ray Tune's `OptunaSearch`.

Each proposal has a separate sampler, seeded by the proposal's number. The samplers know each trial's score at the
first rung (its final score if there are no rungs). So a proposal depends only on the trials before it.
"""

from __future__ import annotations

import itertools
import math
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from ray.tune.search.optuna import OptunaSearch

from jobs.search.rules.auto import (
    BRACKETED,
    brackets_rate,
    compared_point,
    extrapolates,
    first_whole_run,
    fixed_values,
    further_rate,
    in_space,
    is_near,
    prior_of,
    varied_rate_name,
)
from jobs.search.rules.untried import key_of, tried_keys, untried
from jobs.search.rules.varying import engines
from jobs.search.trial import Trial
from jobs.search.trials import Trials
from jobs.spec.space import Range
from jobs.spec.sweep import GRID_POINTS, SweepSpec
from jobs.storage import files as storage

_STUDY = "optuna.journal"


class Proposer:
    """Proposes the trials of a sweep, and takes their scores. A new one continues from the trials in the ledger."""

    def __init__(self, known: Trials, study: Any = None) -> None:
        """`study`: the storage of Optuna's studies; None for memory."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of PartialFixedSampler
        self._known, self._sweep = known, known.sweep
        self._compared = _Study(self._sweep, self._sweep.name, study)
        self._storage = study
        self._whole_runs: _Study | None = None
        for trial in known.searched:
            if not trial.without_rungs:
                self._recall(self._compared, trial)
        if any(trial.without_rungs for trial in known.searched):
            self._study_of_whole_runs()

    def _recall(self, study: _Study, trial: Trial) -> None:
        """Tell Optuna of an earlier trial, unless its values are outside the space, which may have been narrowed."""
        if not holds(self._sweep, trial.values):
            return
        study.begin(trial.number, trial.values)
        if trial.is_over or trial.scores:
            self.tell(trial)

    def _study_of_whole_runs(self) -> _Study:
        """Return the study of the whole runs, which also has the final scores of the compared trials."""
        if self._whole_runs is None:
            self._whole_runs = _Study(self._sweep, f"{self._sweep.name}-whole-runs", self._storage)
            for trial in self._known.searched:
                if trial.without_rungs:
                    self._recall(self._whole_runs, trial)
                elif trial.state == "finished" and holds(self._sweep, trial.values) and trial.score is not None:
                    self._whole_runs.add(trial.values, trial.score)
        return self._whole_runs

    def next_values(self, is_whole: bool = False) -> dict[str, Any]:
        """Propose the values of the next trial: of a whole run, or of a compared trial."""
        known, sweep = self._known, self._sweep
        number, place = len(known.trials) + 1, sum(not trial.without_rungs for trial in known.searched) + 1
        if is_whole:
            return self._whole_run(number)
        if brackets_rate(sweep):
            others = None if place <= BRACKETED or sweep.scheduler == "halving" else self._at_best_rate(number)
            return others or self._compared.begin(number, compared_point(sweep, self._rates()))
        if sweep.algorithm == "auto" and place == 1:
            return self._compared.begin(number, prior_of(sweep))
        if sweep.algorithm == "grid":
            left = untried(sweep, known.searched, None, known.total_steps)
            return self._compared.begin(number, by_engine(sweep, left)[0] if left else grid_values(sweep, place))
        return self._compared.propose(number, known)

    def _at_best_rate(self, number: int) -> dict[str, Any] | None:
        """Propose the other fields at the best rate so far; None if there is none, or if no values are left."""
        best, known = self._known.best, self._known
        if best is None or untried(self._sweep, known.searched, best.values, known.total_steps) == []:
            return None
        return self._compared.propose(number, known, best.values)

    def _rates(self) -> dict[float, float | None]:
        """Return the scores of the compared trials by their rates, for `next_rate`."""
        name, sign = varied_rate_name(self._sweep), 1.0 if self._sweep.lower_is_better else -1.0
        found: dict[float, float | None] = {}
        for trial in [one for one in self._known.searched if not one.without_rungs]:
            score = sign * trial.scores[0][1] if trial.scores else None
            found[trial.values[name]] = math.inf if trial.state == "failed" else score
        return found

    def _whole_run(self, number: int) -> dict[str, Any]:
        """Propose the values of a whole run."""
        study, point = self._study_of_whole_runs(), self._whole_point()
        if point is not None:
            return study.begin(number, point)
        return study.propose(number, self._known, self._known.best_values)

    def _whole_point(self) -> dict[str, Any] | None:
        """Return the values of the next whole run; None if the sampler proposes them, at the best trial's rate."""
        known, sweep, name = self._known, self._sweep, varied_rate_name(self._sweep)
        if not extrapolates(sweep):
            assert known.best is not None
            is_first = not any(trial.without_rungs for trial in known.searched)
            return first_whole_run(sweep, known.best.values) if is_first else None
        tried = [trial.values[name] for trial in known.searched if trial.is_whole]
        if not any(is_near(rate, known.target) for rate in tried):
            return {**prior_of(sweep), name: known.target}
        if untried(sweep, known.searched, known.best_values, known.total_steps) != []:
            return None
        rate = further_rate(sweep, known.target, tried) or known.target
        return {**in_space(sweep, known.best_values), name: rate}

    def tell(self, trial: Trial) -> None:
        """Tell Optuna a trial's score, or that it failed. A second call for the same score changes nothing."""
        if trial.repeats is not None or not holds(self._sweep, trial.values):
            return
        study = self._study_of_whole_runs() if trial.without_rungs else self._compared
        worst = self._worst(trial) if trial.state == "failed" else None
        study.tell(trial.number, trial.values, trial.scores[0][1] if trial.scores else None, worst)
        if trial.scores:
            for other in [one for one in self._known.searched if one.state == "failed" and not one.scores]:
                if other.number in study.begun:
                    self.tell(other)

    def _worst(self, failed: Trial) -> float | None:
        """Return the score that stands for a failed trial: the worst of the trials before it, else the oldest score.

        None while no trial has a score. A score far from all others would spoil the Gaussian process.
        """
        scored = [one for one in self._known.searched if one.scores and one.without_rungs == failed.without_rungs]
        before = [one.scores[0][1] for one in scored if one.number < failed.number]
        if before:
            return max(before) if self._sweep.lower_is_better else min(before)
        return scored[0].scores[0][1] if scored else None


class _Study:
    """One study of Optuna. Its trials have the numbers of the sweep's trials."""

    def __init__(self, sweep: SweepSpec, name: str, study: Any) -> None:
        space = {name: distribution_of(values) for name, values in sweep.dimensions.items()}
        mode = "min" if sweep.lower_is_better else "max"
        self._sweep, self._metric = sweep, sweep.judged
        self._search = OptunaSearch(
            space=space, metric=self._metric, mode=mode, sampler=optuna.samplers.RandomSampler(seed=sweep.seed),
            storage=study, study_name=name,
        )  # fmt: skip
        self._study = self._search._ot_study  # OptunaSearch has no way to enqueue a trial later, or to seed again
        self.begun: set[int] = set()  # numbers of the trials
        self._told: set[int] = set()
        self._failed: set[int] = set()

    def begin(self, number: int, values: Mapping[str, Any]) -> dict[str, Any]:
        """Begin a trial with the given values, and return them."""
        self._study.enqueue_trial(dict(values))
        return self._asked(number)

    def propose(self, number: int, known: Trials, best: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Begin a trial with values from the sampler, and return them.

        Optuna's samplers propose the best values of lists, and ends of ranges, again and again. A trial with the same
        values would give the same result, so other ones are drawn in their place.

        Args:
            best: as for `untried`.
        """
        sweep, trials, total = self._sweep, known.searched, known.total_steps
        left = untried(sweep, trials, best, total)
        fixed = fixed_values(sweep, best) if sweep.algorithm == "auto" else {}
        self._study.sampler = sampler_of(sweep, number, fixed)
        proposed = self._asked(number)
        if left == [] or key_of(sweep, proposed, total) not in tried_keys(sweep, trials, best is not None, total):
            return proposed
        again = self._search._ot_trials.pop(str(number))
        self._study.tell(again, state=optuna.trial.TrialState.FAIL)  # samplers leave such trials out
        if left is not None:
            return self.begin(number, left[_seed(sweep, number) % len(left)])
        self._study.sampler = sampler_of(sweep, number, fixed, "random")
        return self._asked(number)

    def _asked(self, number: int) -> dict[str, Any]:
        self.begun.add(number)
        begun: dict[str, Any] = self._search.suggest(str(number))
        return begun

    def add(self, values: Mapping[str, Any], score: float) -> None:
        """Add a trial of another study with its score."""
        self._search.add_evaluated_point(dict(values), score)

    def tell(self, number: int, values: Mapping[str, Any], score: float | None, worst: float | None) -> None:
        """Tell a score.

        Args:
            worst: the score that stands for a failed trial. If the trial also has a score, its values get both.
        """
        told = score if score is not None else worst
        if number not in self._told and told is not None:
            self._told.add(number)
            self._search.on_trial_complete(str(number), {self._metric: told})
        if worst is not None and score is not None and number not in self._failed:
            self._failed.add(number)
            self.add(values, worst)


def sampler_of(
    sweep: SweepSpec, number: int, fixed: Mapping[str, Any], algorithm: str | None = None
) -> optuna.samplers.BaseSampler:
    """Make the sampler of one proposal.

    Args:
        fixed: values that the sampler may not change.
        algorithm: in place of the sweep's own.
    """
    seed = _seed(sweep, number)
    samplers: Mapping[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
        "gp": lambda: _gaussian_process(seed=seed),
        "auto": lambda: _gaussian_process(seed=seed, n_startup_trials=1),
    }
    sampler = samplers[algorithm or sweep.algorithm]()
    return optuna.samplers.PartialFixedSampler(dict(fixed), sampler) if fixed else sampler


def _seed(sweep: SweepSpec, number: int) -> int:
    return int(np.random.SeedSequence([sweep.seed, number]).generate_state(1)[0])


def _gaussian_process(**options: Any) -> optuna.samplers.BaseSampler:
    """Make a Gaussian process with one thread: several would wait for each other while gangs keep the cores busy."""
    import torch

    torch.set_num_threads(1)
    return optuna.samplers.GPSampler(**options)


def distribution_of(values: Range | tuple[Any, ...]) -> optuna.distributions.BaseDistribution:
    if isinstance(values, tuple):
        return optuna.distributions.CategoricalDistribution(values)
    return optuna.distributions.FloatDistribution(values.min, values.max, log=values.log)


def holds(sweep: SweepSpec, values: Mapping[str, Any]) -> bool:
    """Whether the values lie in the sweep's space."""
    return all(
        values[name] in wanted if isinstance(wanted, tuple) else wanted.min <= values[name] <= wanted.max
        for name, wanted in sweep.dimensions.items()
    )


def by_engine(sweep: SweepSpec, points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Order points of a grid by their engines, because a gang is started again for each change of the engine."""
    order = engines(sweep)
    return sorted(points, key=lambda point: order.index({name: point[name] for name in order[0]}))


def grid_values(sweep: SweepSpec, number: int) -> dict[str, Any]:
    """Return the values of one trial of a grid, by its number from 1 on."""
    lines = [values if isinstance(values, tuple) else values.values(values.points or GRID_POINTS)
             for values in sweep.dimensions.values()]  # fmt: skip
    return dict(zip(sweep.dimensions, next(itertools.islice(itertools.product(*lines), number - 1, None)), strict=True))


def new_study(root: str) -> Any:
    """Make the file of a new study, which optuna-dashboard opens; None (in memory) for a sweep on an object store.

    It replaces the file of an earlier driver, because a search continues from the ledger.
    """
    if not storage.is_local(root):
        return None
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage.remove_file(storage.join(root, _STUDY))
    return JournalStorage(JournalFileBackend(os.path.join(storage.local_path(root), _STUDY)))
