"""Which values the next trial gets: Optuna's samplers, asked through Ray Tune's `OptunaSearch`.

A sampler is made anew for each proposal and seeded by its number, and it knows the score of each trial at its first
rung (the final one where there are no rungs): a proposal follows from the trials before it alone.
"""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
from ray.tune.search.optuna import OptunaSearch

from jobs import storage
from jobs.search.auto import first_points, fixed_values, last_points
from jobs.search.ledger import Trial, Trials
from jobs.search.spec import GRID_POINTS, Range, SweepSpec

_STUDY = "optuna.journal"


class Proposer:
    """The proposals of a sweep; it goes on from the trials that there are."""

    def __init__(self, known: Trials, study: Any = None) -> None:
        """`study`: storage of Optuna's studies; None: in memory."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # of PartialFixedSampler
        self._known, self._sweep = known, known.sweep
        self._compared = _Study(self._sweep, self._sweep.name, study)
        self._storage = study
        self._straight: _Study | None = None
        for trial in known.trials.values():
            if not trial.straight:
                self._recall(self._compared, trial)
        if any(trial.straight for trial in known.trials.values()):
            self._study_of_straight()

    def _recall(self, study: _Study, trial: Trial) -> None:
        """Optuna takes no values outside of the space, which may have been narrowed since."""
        if not holds(self._sweep, trial.values):
            return
        study.begin(trial.number, trial.values, None)
        if trial.is_over or trial.scores:
            self.told(trial)

    def _study_of_straight(self) -> _Study:
        """The study of the trials that are not compared. It knows the final scores of the others."""
        if self._straight is None:
            self._straight = _Study(self._sweep, f"{self._sweep.name}-straight", self._storage)
            for trial in self._known.trials.values():
                if trial.straight:
                    self._recall(self._straight, trial)
                elif trial.state == "finished" and holds(self._sweep, trial.values):
                    self._straight.add(trial.values, self._known.told_as(trial))
        return self._straight

    def next_values(self, straight: bool = False) -> dict[str, Any]:
        """Of a trial that is added to the known ones next."""
        known, sweep = self._known, self._sweep
        number = len(known.trials) + 1
        if straight:
            assert known.best is not None
            study, best = self._study_of_straight(), known.best.values
            points, begun = last_points(sweep, best), sum(trial.straight for trial in known.trials.values())
            if begun < len(points):
                return study.begin(number, points[begun], None)
            return study.begin(number, None, sampler_of(sweep, number, fixed_values(sweep, True, best)))
        points = first_points(sweep) if sweep.algorithm == "auto" else []
        if number <= len(points):
            return self._compared.begin(number, points[number - 1], None)
        if sweep.algorithm == "grid":
            return self._compared.begin(number, grid_values(sweep, number), None)
        fixed = fixed_values(sweep, False, {}) if sweep.algorithm == "auto" else {}
        return self._compared.begin(number, None, sampler_of(sweep, number, fixed))

    def told(self, trial: Trial) -> None:
        """Take over the score of a trial, or that it failed. What is known already changes nothing."""
        if not holds(self._sweep, trial.values):
            return
        study = self._study_of_straight() if trial.straight else self._compared
        worst = self._worst(trial) if trial.state == "failed" else None
        study.tell(trial.number, trial.values, trial.scores[0][1] if trial.scores else None, worst)
        if trial.scores:
            for other in [one for one in self._known.trials.values() if one.state == "failed" and not one.scores]:
                if other.number in study.untold:
                    self.told(other)

    def _worst(self, failed: Trial) -> float | None:
        """What a failed trial counts as: the worst first score of the trials before it, or else the first one of all.

        None while there is none. A number far from all others would spoil a Gaussian process.
        """
        scored = [one for one in self._known.trials.values() if one.scores and one.straight == failed.straight]
        before = [one.scores[0][1] for one in scored if one.number < failed.number]
        if before:
            return max(before) if self._sweep.lower_is_better else min(before)
        return scored[0].scores[0][1] if scored else None


class _Study:
    """One study of Optuna, its trials called by the sweep's numbers."""

    def __init__(self, sweep: SweepSpec, name: str, study: Any) -> None:
        space = {name: distribution_of(values) for name, values in sweep.dimensions.items()}
        mode = "min" if sweep.lower_is_better else "max"
        self._metric = sweep.judged
        self._search = OptunaSearch(
            space=space, metric=self._metric, mode=mode, sampler=optuna.samplers.RandomSampler(seed=sweep.seed),
            storage=study, study_name=name,
        )  # fmt: skip
        self._study = self._search._ot_study  # OptunaSearch has no way to enqueue a trial later, or to seed again
        self._begun: set[int] = set()
        self._told: set[int] = set()
        self._failed: set[int] = set()

    @property
    def untold(self) -> set[int]:
        """Numbers of the trials without a score."""
        return self._begun - self._told

    def begin(
        self, number: int, values: Mapping[str, Any] | None, sampler: optuna.samplers.BaseSampler | None
    ) -> dict[str, Any]:
        """A trial with these values, or with those that the sampler proposes."""
        if values is not None:
            self._study.enqueue_trial(dict(values))
        if sampler is not None:
            self._study.sampler = sampler
        self._begun.add(number)
        begun: dict[str, Any] = self._search.suggest(str(number))
        return begun

    def add(self, values: Mapping[str, Any], score: float) -> None:
        """A trial of another study, and its score."""
        self._search.add_evaluated_point(dict(values), score)

    def tell(self, number: int, values: Mapping[str, Any], score: float | None, worst: float | None) -> None:
        """`worst`: the score of a trial that has failed; where it had another one before, its values get both."""
        told = score if score is not None else worst
        if number not in self._told and told is not None:
            self._told.add(number)
            self._search.on_trial_complete(str(number), {self._metric: told})
        if worst is not None and score is not None and number not in self._failed:
            self._failed.add(number)
            self.add(values, worst)


def sampler_of(sweep: SweepSpec, number: int, fixed: Mapping[str, Any]) -> optuna.samplers.BaseSampler:
    """The sampler of one proposal.

    Args:
        fixed: values that it has to propose.
    """
    seed = int(np.random.SeedSequence([sweep.seed, number]).generate_state(1)[0])
    samplers: Mapping[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
        "auto": lambda: optuna.samplers.GPSampler(seed=seed, n_startup_trials=1),
    }
    sampler = samplers[sweep.algorithm]()
    return optuna.samplers.PartialFixedSampler(dict(fixed), sampler) if fixed else sampler


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


def grid_values(sweep: SweepSpec, number: int) -> dict[str, Any]:
    """The values of one trial of a grid, by its number from 1 on."""
    lines = [values if isinstance(values, tuple) else values.values(values.points or GRID_POINTS)
             for values in sweep.dimensions.values()]  # fmt: skip
    return dict(zip(sweep.dimensions, next(itertools.islice(itertools.product(*lines), number - 1, None)), strict=True))


def new_study(root: str) -> Any:
    """A file that optuna-dashboard opens; None, and so in memory, where the sweep is on an object store.

    It takes the place of an earlier driver's: the ledger is what a search goes on from.
    """
    if not storage.is_local(root):
        return None
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage.remove_file(storage.join(root, _STUDY))
    return JournalStorage(JournalFileBackend(os.path.join(storage.local_path(root), _STUDY)))
