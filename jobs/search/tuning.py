"""Ray Tune as the brain of a sweep: Optuna's samplers propose, Tune's schedulers judge, the trials ask for gangs.

What Tune does not save (rungs, proposals, which trial ended why), the ledger does.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from cluster.settings import set_default
from jobs import storage
from jobs.search.ledger import Ledger, Trial
from jobs.search.rungs import kept
from jobs.search.spec import GRID_POINTS, Range, SweepSpec
from jobs.search.trainable import GangTrial

ETA = 2  # of the trials of a rung, one in so many goes on
_ON_THE_HEAD = {"node:__internal_head__": 0.0001}  # a trial waits for its gang and needs no CPU
_FOLDER, _STUDY = "tune", "optuna.journal"


def make_tuner(ledger: Ledger, root: str, own: str, room: Callable[[], int], spent: Callable[[], bool]) -> Any:
    """The tuner of a sweep, which goes on from what the ledger knows.

    Args:
        root: the sweep's directory; Optuna's study lies there.
        own: this driver's directory, where trials leave their requests (see `Desk`), and Tune what it writes.
        room: gangs that there are.
        spent: whether the budget is used up, so that no other trial is begun.
    """
    sweep = ledger.sweep
    set_default("TUNE_DISABLE_SIGINT_HANDLER", "1")
    proposals = Proposals(ledger, new_study(root), own, room, spent)
    return tune.Tuner(
        tune.with_resources(GangTrial, PlacementGroupFactory([_ON_THE_HEAD])),
        tune_config=tune.TuneConfig(
            metric=sweep.judged,
            mode="min" if sweep.lower_is_better else "max",
            search_alg=proposals,
            scheduler=Judge(ledger, scheduler_of(sweep), room, spent),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config.get('trial', 0):04d}",
        ),
        run_config=tune.RunConfig(
            name=_FOLDER, storage_path=storage.local_path(own) if storage.is_local(own) else own, verbose=0
        ),
    )


def sampler_of(sweep: SweepSpec, number: int) -> optuna.samplers.BaseSampler:
    """The sampler of one proposal, seeded by its number: a proposal follows from the trials before it alone."""
    seed = int(np.random.SeedSequence([sweep.seed, number]).generate_state(1)[0])
    samplers: Mapping[str, Callable[[], optuna.samplers.BaseSampler]] = {
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed, deterministic_objective=False),
    }
    return samplers.get(sweep.algorithm, samplers["random"])()


def distribution_of(values: Range | tuple[Any, ...]) -> optuna.distributions.BaseDistribution:
    if isinstance(values, tuple):
        return optuna.distributions.CategoricalDistribution(values)
    return optuna.distributions.FloatDistribution(values.min, values.max, log=values.log)


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


def scheduler_of(sweep: SweepSpec) -> TrialScheduler | None:
    """Tune's own for asha; None: no trial is stopped by comparison, or `Judge` does it (halving)."""
    if sweep.scheduler != "asha":
        return None
    return AsyncHyperBandScheduler(
        time_attr="resource",
        max_t=ETA ** len(sweep.rungs),
        grace_period=1,
        reduction_factor=ETA,
        stop_last_trials=False,
    )


def with_resource(result: Mapping[str, Any]) -> dict[str, Any]:
    """A result with what Tune's ASHA counts: ETA**k at rung k, so that it compares at each and lets one in ETA pass."""
    return {**result, "resource": ETA ** (result.get("rung", 1) - 1)}


def _of_an_ended_search() -> None:
    """Stands in Tune's own file for objects of this process. Nothing resumes from that file."""


class Proposals(Searcher):  # type: ignore[misc]  # ray carries no types
    """Optuna's proposals, one whenever a gang is free, each with a trial in the ledger."""

    def __init__(
        self,
        ledger: Ledger,
        study: Any,
        desk: str,
        room: Callable[[], int],
        spent: Callable[[], bool],
    ) -> None:
        sweep = ledger.sweep
        mode = "min" if sweep.lower_is_better else "max"
        super().__init__(metric=sweep.judged, mode=mode)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        space = {name: distribution_of(values) for name, values in sweep.dimensions.items()}
        self._inner = OptunaSearch(
            space=space, metric=sweep.judged, mode=mode, sampler=sampler_of(sweep, 0), storage=study,
            study_name=sweep.name,
        )  # fmt: skip
        self._study = self._inner._ot_study  # OptunaSearch has no way to enqueue a trial later, or to seed again
        self._ledger, self._desk, self._room, self._spent = ledger, desk, room, spent
        self._names: dict[int, str] = {}  # Optuna's and Tune's, by number of the trial
        self._trials: dict[str, Trial] = {}  # by Tune's name
        self._open: set[str] = set()  # Tune's names of trials that run, or whose result Optuna does not have yet
        for trial in ledger.trials.values():
            self._recall(trial)

    def _recall(self, trial: Trial) -> None:
        """Let the study know of a trial of an earlier driver."""
        if trial.is_over:
            self._inner.add_evaluated_point(trial.values, self._ledger.told_as(trial))
        else:
            self._propose(f"recalled-{trial.number}", trial.values)
            self._names[trial.number] = f"recalled-{trial.number}"

    def _propose(self, name: str, values: Mapping[str, Any] | None) -> dict[str, Any]:
        """The values of a new trial of the study; given ones, or the sampler's."""
        if values is not None:
            self._study.enqueue_trial(dict(values))
        self._study.sampler = sampler_of(self._ledger.sweep, len(self._ledger.trials) + 1)
        proposed: dict[str, Any] = self._inner.suggest(name)
        return proposed

    def _waiting(self) -> Trial | None:
        """A trial of an earlier driver whose turn it is, and which Tune does not know yet."""
        known = {trial.number for trial in self._trials.values()}
        waiting = [trial for trial in self._ledger.trials.values() if not trial.is_over and trial.number not in known]
        if self._ledger.sweep.scheduler == "halving":
            going, _ = halved(self._ledger) if self._spent() else ([], [])
            waiting = [trial for trial in waiting if not trial.scores or trial.number in going]
        return next(iter(waiting), None)

    def __reduce__(self) -> tuple[Any, ...]:
        return _of_an_ended_search, ()

    def suggest(self, trial_id: str) -> Any:
        ledger = self._ledger
        if len(self._open) >= self._room():
            return None
        trial = self._waiting()
        if trial is None:
            if self._spent():
                recalled = any(not trial.is_over and trial.number in self._names for trial in ledger.trials.values())
                return None if recalled and ledger.sweep.scheduler == "halving" else Searcher.FINISHED
            trial = ledger.add(self._propose(trial_id, next_of_grid(ledger)))
            self._names[trial.number] = trial_id
        self._trials[trial_id] = trial
        self._open.add(trial_id)
        trial.state = "running"
        return {
            "trial": trial.number,
            "desk": self._desk,
            "metric": self.metric,
            "stops": stops_of(ledger.sweep, ledger.total_steps),
            "rung": trial.rung,
            **trial.values,
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if self._ledger.sweep.scheduler == "halving":  # it rests until the others have come as far
            self._open.discard(trial_id)
        name = self._names[self._trials[trial_id].number]
        self._inner.on_trial_result(name, {self.metric: result[self.metric], "training_iteration": result["step"]})

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._trials[trial_id]
        self._open.discard(trial_id)
        self._inner.on_trial_complete(self._names[trial.number], {self.metric: self._ledger.told_as(trial)})

    def save(self, checkpoint_path: str) -> None:
        """The ledger keeps what is needed."""
        open(checkpoint_path, "wb").close()

    def restore(self, checkpoint_path: str) -> None: ...


def next_of_grid(ledger: Ledger) -> dict[str, Any] | None:
    """The values of the next trial of a grid; None where a sampler proposes them."""
    sweep = ledger.sweep
    if sweep.algorithm != "grid":
        return None
    lines = [values if isinstance(values, tuple) else values.values(values.points or GRID_POINTS)
             for values in sweep.dimensions.values()]  # fmt: skip
    place = len(ledger.trials)
    return dict(zip(sweep.dimensions, next(itertools.islice(itertools.product(*lines), place, None)), strict=True))


def halved(ledger: Ledger) -> tuple[list[int], list[int]]:
    """`kept` of the ledger's trials."""
    stops = stops_of(ledger.sweep, ledger.total_steps)
    return kept(list(ledger.trials.values()), stops, ETA, ledger.sweep.lower_is_better)


def stops_of(sweep: SweepSpec, total_steps: int) -> list[int]:
    """Steps at which a trial is compared, and the last one."""
    rungs = () if sweep.scheduler == "none" else sweep.rungs
    return sorted({min(max(round(share * total_steps), 1), total_steps) for share in (*rungs, 1.0)})


class Judge(FIFOScheduler):  # type: ignore[misc]  # ray carries no types
    """Which trials go on: Tune's scheduler is asked where there is one; in halving, `jobs.search.rungs` decides."""

    def __init__(
        self, ledger: Ledger, inner: TrialScheduler | None, room: Callable[[], int], spent: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._ledger, self._inner, self._room, self._spent = ledger, inner, room, spent
        self._halving = ledger.sweep.scheduler == "halving"
        if inner is not None:
            inner.set_search_properties(ledger.sweep.judged, "min" if ledger.sweep.lower_is_better else "max")
            for trial in ledger.trials.values():
                self._recall(trial)

    def _recall(self, trial: Trial) -> None:
        """Show Tune's scheduler, which nothing saves, the scores that a trial had under an earlier driver."""
        assert self._inner is not None
        stand_in = SimpleNamespace(trial_id=f"recalled-{trial.number}")
        self._inner.on_trial_add(None, stand_in)
        for rung, (_, score) in enumerate(trial.scores):
            shown = {self._ledger.sweep.judged: score, "rung": rung + 1}
            self._inner.on_trial_result(None, stand_in, with_resource(shown))

    def __reduce__(self) -> tuple[Any, ...]:
        return _of_an_ended_search, ()

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        if self._inner is not None:
            self._inner.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        mine = self._ledger.trials[trial.config["trial"]]
        if self._halving:
            return str(TrialScheduler.PAUSE)
        if self._inner is None:
            return str(TrialScheduler.CONTINUE)
        decision = str(self._inner.on_trial_result(tune_controller, trial, with_resource(result)))
        if decision == TrialScheduler.STOP:
            self._ledger.stopped(mine, f"worse than the better half after step {mine.step}")
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        if self._inner is not None:
            self._inner.on_trial_complete(tune_controller, trial, with_resource(result))

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        if not self._halving:
            return super().choose_trial_to_run(tune_controller)
        by_number = {trial.config["trial"]: trial for trial in tune_controller.get_trials()}
        going, ended = halved(self._ledger) if self._spent() else ([], [])  # else trials are missing yet
        for number in ended:
            mine = self._ledger.trials[number]
            self._ledger.stopped(mine, f"worse than the better half after step {mine.step}")
            if number in by_number:
                tune_controller.stop_trial(by_number[number])
        running = sum(trial.status == TuneTrial.RUNNING for trial in by_number.values())
        paused = [by_number[one] for one in going if one in by_number and by_number[one].status == TuneTrial.PAUSED]
        if paused and running < self._room():
            return paused[0]
        return next((trial for trial in by_number.values() if trial.status == TuneTrial.PENDING), None)
