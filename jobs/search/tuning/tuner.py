"""Runs a sweep with Ray Tune: Optuna's samplers propose trials, and Tune's schedulers compare them.

Nothing is resumed from Tune's own files: the ledger stores every trial, its scores and why it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from cluster.settings import set_default
from jobs.search.ledger import Ledger
from jobs.search.rules.budget import Next
from jobs.search.rules.rungs import ETA
from jobs.search.trial import Trial
from jobs.search.tuning.proposing import Proposer, new_study
from jobs.search.tuning.trainable import GangTrial
from jobs.spec.sweep import SweepSpec
from jobs.storage import files as storage

_ON_THE_HEAD = {"node:__internal_head__": 0.0001}  # a trial waits for its gang and needs no CPU
_FOLDER = "tune"


@dataclass(frozen=True)
class Callbacks:
    """Functions of the driver that Ray Tune's thread calls.

    Attributes:
        num_gangs: returns the number of gangs.
        next_kind: returns the kind of trial that may begin now.
        finish: called when Tune will ask for no other trial.
        lost: called with a trial whose Tune actor has died.
        left: returns whether the driver has left the search.
    """

    num_gangs: Callable[[], int]
    next_kind: Callable[[], Next]
    finish: Callable[[], None]
    lost: Callable[[Trial], None]
    left: Callable[[], bool]


def make_tuner(ledger: Ledger, root: str, own: str, driver: Callbacks) -> Any:
    """Make the tuner of a sweep, which continues from the trials in the ledger.

    Args:
        root: the sweep's directory, which will hold Optuna's study.
        own: this driver's directory, for the requests of trials (see `TrialMailbox`) and for Tune's files.
    """
    sweep = ledger.sweep
    set_default("TUNE_DISABLE_SIGINT_HANDLER", "1")
    proposals = Proposals(ledger, lambda: Proposer(ledger, new_study(root)), own, driver)
    return tune.Tuner(
        tune.with_resources(GangTrial, PlacementGroupFactory([_ON_THE_HEAD])),
        tune_config=tune.TuneConfig(
            metric=sweep.judged,
            mode="min" if sweep.lower_is_better else "max",
            search_alg=proposals,
            scheduler=SweepScheduler(ledger, scheduler_of(sweep), driver),
            num_samples=-1,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: f"{trial.config.get('trial', 0):04d}",
        ),
        run_config=tune.RunConfig(
            name=_FOLDER, storage_path=storage.local_path(own) if storage.is_local(own) else own, verbose=0
        ),
    )


def scheduler_of(sweep: SweepSpec) -> TrialScheduler | None:
    """Return Tune's scheduler for asha. None: trials are not compared (none), or `SweepScheduler` does it (halving)."""
    if sweep.scheduler != "asha":
        return None
    return AsyncHyperBandScheduler(
        time_attr="resource",
        max_t=ETA ** len(sweep.rung_shares),
        grace_period=1,
        reduction_factor=ETA,
        stop_last_trials=False,
    )


def with_resource(result: Mapping[str, Any]) -> dict[str, Any]:
    """Add what Tune's ASHA counts: ETA**k at rung k, so that it compares at each rung and lets one in ETA continue."""
    return {**result, "resource": ETA ** (result.get("rung", 1) - 1)}


def _nothing() -> None:
    """Replace an object in Tune's file about the search, which cannot be pickled and from which nothing resumes."""


class Proposals(Searcher):  # type: ignore[misc]  # ray carries no types
    """Gives Tune a trial whenever a gang is free: one that an earlier driver has begun, or a new one."""

    def __init__(self, ledger: Ledger, make_proposer: Callable[[], Proposer], mailbox: str, driver: Callbacks) -> None:
        super().__init__(metric=ledger.sweep.judged, mode="min" if ledger.sweep.lower_is_better else "max")
        self._ledger, self._make_proposer, self._mailbox = ledger, make_proposer, mailbox
        self._of, self._made = ledger.sweep, make_proposer()
        self._driver = driver
        self._trials: dict[str, Trial] = {}  # by Tune's name
        self._open: set[str] = set()  # Tune's names of trials that run, or whose result Tune has not passed on yet

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()

    @property
    def _proposer(self) -> Proposer:
        """The proposer for the present sweep, whose ranges may have been changed."""
        if self._of is not self._ledger.sweep:
            self._of, self._made = self._ledger.sweep, self._make_proposer()
        return self._made

    def suggest(self, trial_id: str) -> Any:
        kind = self._driver.next_kind()
        if len(self._open) >= self._driver.num_gangs() or kind == "stopped":
            return None
        trial = self._waiting(kind)
        if trial is None and kind == "wait":
            return None
        if trial is None and kind == "done":
            self._driver.finish()
            return Searcher.FINISHED
        trial = trial or self._begun(kind)
        self._trials[trial_id] = trial
        self._open.add(trial_id)
        trial.state = "running"
        return {
            "trial": trial.number,
            "mailbox": self._mailbox,
            "metric": self.metric,
            "rung": len(trial.scores),
            **trial.values,
        }

    def _begun(self, kind: Next) -> Trial:
        """Begin a new trial of this kind."""
        first = self._ledger.to_repeat() if kind == "repeat" else None
        if first is not None:
            return self._ledger.add(first.values, without_rungs=True, repeats=first.number)
        is_whole = kind == "whole"
        return self._ledger.add(self._proposer.next_values(is_whole), without_rungs=is_whole)

    def _waiting(self, kind: Next) -> Trial | None:
        """Return the next trial of an earlier driver that may continue and that Tune does not know yet.

        Args:
            kind: the kind of trial that may begin next.
        """
        known = {trial.number for trial in self._trials.values()}
        waiting = [trial for trial in self._ledger.trials.values() if not trial.is_over and trial.number not in known]
        if self._ledger.sweep.scheduler == "halving":
            going = halved(self._ledger, kind)
            waiting = [trial for trial in waiting if not trial.scores or trial.number in going]
        return next(iter(waiting), None)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if self._ledger.sweep.scheduler == "halving":  # it is paused, and leaves its gang to other trials
            self._open.discard(trial_id)
        self._proposer.tell(self._trials[trial_id])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self._open.discard(trial_id)
        self._proposer.tell(self._trials[trial_id])
        if error:
            self._driver.lost(self._trials[trial_id])

    def save(self, checkpoint_path: str) -> None:
        """Write an empty file: the ledger stores all state."""
        open(checkpoint_path, "wb").close()

    def restore(self, checkpoint_path: str) -> None: ...


def halved(ledger: Ledger, kind: Next) -> list[int]:
    """Return the numbers of the trials that continue from a rung; empty until all trials have begun.

    Args:
        kind: the kind of trial that may begin next.
    """
    return [] if kind in ("compared", "stopped") else ledger.going_on


class SweepScheduler(FIFOScheduler):  # type: ignore[misc]  # ray carries no types
    """Decides which trials continue: by Tune's scheduler if there is one; in halving, by `rules.rungs`."""

    def __init__(self, ledger: Ledger, inner: TrialScheduler | None, driver: Callbacks) -> None:
        super().__init__()
        self._ledger, self._inner, self._driver = ledger, inner, driver
        self._halving = ledger.sweep.scheduler == "halving"
        if inner is not None:
            inner.set_search_properties(ledger.sweep.judged, "min" if ledger.sweep.lower_is_better else "max")
            for trial in ledger.searched:
                self._recall(trial)

    def _recall(self, trial: Trial) -> None:
        """Give the scores of an earlier driver's trial to Tune's scheduler, whose state is not stored."""
        assert self._inner is not None
        stand_in = SimpleNamespace(trial_id=f"recalled-{trial.number}")
        self._inner.on_trial_add(None, stand_in)
        for rung, (_, score) in enumerate(trial.scores):
            shown = {self._ledger.sweep.judged: score, "rung": rung + 1}
            self._inner.on_trial_result(None, stand_in, with_resource(shown))

    def __reduce__(self) -> tuple[Any, ...]:
        return _nothing, ()

    def on_trial_add(self, tune_controller: Any, trial: TuneTrial) -> None:
        if self._inner is not None:
            self._inner.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        mine = self._ledger.trials[trial.config["trial"]]
        if self._halving:
            return str(TrialScheduler.PAUSE)
        if self._inner is None or mine.repeats is not None:
            return str(TrialScheduler.CONTINUE)
        decision = str(self._inner.on_trial_result(tune_controller, trial, with_resource(result)))
        if decision == TrialScheduler.STOP:
            self._ledger.stopped(mine, f"not in the best quarter after step {mine.step}")
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        if self._inner is not None and self._ledger.trials[trial.config["trial"]].repeats is None:
            self._inner.on_trial_complete(tune_controller, trial, with_resource(result))

    def choose_trial_to_run(self, tune_controller: Any) -> TuneTrial | None:
        """Choose a trial. Tune's thread calls this in each of its steps, so it also ends the thread here."""
        if self._driver.left():
            raise SystemExit  # after any other exception, Tune would go on
        if not self._halving:
            return super().choose_trial_to_run(tune_controller)
        by_number = {trial.config["trial"]: trial for trial in tune_controller.get_trials()}
        kind = self._driver.next_kind()
        if kind == "done":  # Tune ends once no trial is paused
            for trial in by_number.values():
                if trial.status == TuneTrial.PAUSED:
                    tune_controller.stop_trial(trial)
            return None
        going = [*self._ledger.moved_to_later_rung, *halved(self._ledger, kind)]
        running = sum(trial.status == TuneTrial.RUNNING for trial in by_number.values())
        paused = [by_number[one] for one in going if one in by_number and by_number[one].status == TuneTrial.PAUSED]
        if paused and running < self._driver.num_gangs():
            return paused[0]
        return next((trial for trial in by_number.values() if trial.status == TuneTrial.PENDING), None)
