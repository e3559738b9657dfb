"""The search of one driver: it passes the requests of trials to gangs, and records the answers in the ledger."""

from __future__ import annotations

import contextlib
import hashlib
import math
import threading
import time
import traceback
from typing import Any

from cluster.errors import FleetuneError, Interrupted, MachinesFailed, RunFailed, SpecError, StorageError
from cluster.ray.connection import leaving_nodes
from cluster.text import many
from jobs.drivers.finetune.node_draining import Draining
from jobs.drivers.stop_request import StopRelay
from jobs.run.attempts import take_run
from jobs.run.events import Announcer
from jobs.run.metric_names import missing_metric
from jobs.run.paths import JobPaths
from jobs.search.changes import Change, Changes, changed
from jobs.search.driver.carrying_out import carried_out
from jobs.search.driver.checkpoint_space import limit_checkpoints
from jobs.search.driver.final import pass_on_save_request
from jobs.search.driver.gangs import Gangs
from jobs.search.driver.probe import bound_rate, check_first_metrics
from jobs.search.driver.trial_files import (
    ask_to_save_and_end,
    remove_requests,
    trained_before_failing,
    unanswered,
    user_asks_to_end,
)
from jobs.search.driver.tune_failure import error_of_tune
from jobs.search.driver.warm_gang import GangLost
from jobs.search.ledger import Ledger
from jobs.search.planned import plan_if_later, plan_of, planned_steps, steps_done
from jobs.search.report.trial_text import format_trial, trial_line
from jobs.search.rules.budget import BudgetPlan, Next, check_lengths, most_to_train
from jobs.search.rules.checking import stored_sweep
from jobs.search.rules.rungs import cooldown_of, next_stop, stops_of
from jobs.search.rules.spec_text import format_space
from jobs.search.spending import Spending, untried_only
from jobs.search.trial import Trial
from jobs.spec.load import dump_spec
from jobs.spec.sweep import SweepSpec
from jobs.storage import files as storage
from jobs.storage.journal import JournalReader
from jobs.training.mailbox import Answer, GangTask, TrialMailbox

_POLL_S = 0.05
_LOOK_EVERY_S = 1.0  # for changes; each look asks the storage
_NODES_EVERY, _STEPS_EVERY = 5, 20  # looks after which nodes are looked at, and after which steps are announced
# Seconds, and share of the time since the search began, after which the use of machines is recorded without an answer.
# With a share, a search of days writes few records.
_USED_EVERY_S, _USED_SHARE = 60.0, 0.05
_TUNE_ENDS_WITHIN_S = 5.0
_SAVED_WITHIN_S = 60.0  # to wait for checkpoints of running trials after the search has failed


class Search:
    """The search of one driver, from its first request to the end of Ray Tune."""

    def __init__(
        self,
        ledger: Ledger,
        paths: JobPaths,
        own: str,
        gangs: Gangs,
        announce: Announcer,
        relay: StopRelay,
        plan: BudgetPlan,
        draining: Draining,
        gives_back: bool = False,
    ) -> None:
        """
        Args:
            own: directory of this driver.
            gives_back: end gangs for which no trial is left, so that other jobs can use their slots.
        """
        self.ledger, self.paths, self.gangs, self.announce = ledger, paths, gangs, announce
        self._relay, self._plan, self._draining, self._own = relay, plan, draining, own
        self._mailbox = TrialMailbox(own)
        self._seen: set[str] = set()
        self._serving: list[threading.Thread] = []
        self._answered_lock = threading.Lock()
        self._began_s = time.monotonic()
        self._looked_s, self._looks = -math.inf, 0  # looks at once: Tune must not end before a change that waits
        self._recorded_s = self._began_s  # when the use of machines was recorded last
        self._steps_before = steps_done(ledger)
        self._changes = Changes(paths)
        self._gives_back = gives_back
        self._ending: threading.Thread | None = None  # ends gangs for which no trial is left
        self._spending = Spending(ledger, lambda: gangs.num_workers_held, own.rpartition("/")[2])
        self._finished = threading.Event()  # Ray Tune will ask for no more trials
        self._readers: dict[int, JournalReader] = {}  # of the metrics of each trial
        self._failed: FleetuneError | None = None  # why the search must end, such as that no gang is left
        self._tuner_runs, self._left = threading.Event(), threading.Event()

    def run(self) -> None:
        """Search until Tune is done.

        Raises:
            FleetuneError: no gang is left.
            Interrupted: a second signal.
        """
        done: dict[str, Any] = {}
        tune = threading.Thread(target=self._tune, args=(done,), name="tune", daemon=True)
        tune.start()
        try:
            while tune.is_alive():
                self._serve_requests()
                self._look()
                self._relay.check()
                self._failed = self._failed or self.gangs.failure
                if self._failed is not None:
                    self._stop_running(_SAVED_WITHIN_S)
                    raise self._failed
                if self.asked_to_stop():
                    self._stop_running()
                    return
                time.sleep(_POLL_S)
        finally:  # a call of Tune's thread while Ray shuts down would end this process at once
            self.ledger.used(self._spending.so_far())
            self._left.set()
            tune.join(_TUNE_ENDS_WITHIN_S if self._tuner_runs.is_set() else 0.0)
        if self._ending is not None:
            self._ending.join()  # the final run must not take a gang that is about to be given back
        if "error" in done:
            raise done["error"]

    def _look(self) -> None:
        """Once a second, look for changes and for gangs to end; less often, look at nodes and announce steps."""
        if time.monotonic() - self._looked_s <= _LOOK_EVERY_S:
            return
        self._looked_s, self._looks = time.monotonic(), self._looks + 1
        self._look_at_changes()
        self._give_back()
        if self._looks % _NODES_EVERY == 0:
            self._draining.look(leaving_nodes())
            pass_on_save_request(self.paths, [trial.paths for trial in self._running()])
        if self._looks % _STEPS_EVERY == 0:
            self._tell_steps()
            self._stop_paused()
        if time.monotonic() - self._recorded_s > max(_USED_EVERY_S, _USED_SHARE * (time.monotonic() - self._began_s)):
            self._recorded_s = time.monotonic()
            self.ledger.used(self._spending.so_far())

    def _tune(self, done: dict[str, Any]) -> None:
        try:
            from jobs.search.tuning.tuner import Callbacks, make_tuner

            bound_rate(self.ledger, self.gangs, self._own, self.announce)
            finish, left = self._finished.set, self._left.is_set
            driver = Callbacks(lambda: len(self.gangs), self.next_kind, finish, self._lost, left)
            self._tuner_runs.set()
            make_tuner(self.ledger, self.paths.root, self._own, driver).fit()
        except FleetuneError as error:
            done["error"] = error
        except Exception as error:
            traceback.print_exc()
            done["error"] = error_of_tune(error, self.ledger.sweep.base)

    def _lost(self, trial: Trial) -> None:
        """End the search: the Ray Tune actor that waits for this trial's score has died."""
        said = f"Ray Tune's actor for trial {trial.number} has ended. See its log in the logs of the Ray cluster"
        self._failed = self._failed or MachinesFailed(said)

    def asked_to_stop(self) -> bool:
        return self._relay.stop.asked

    def next_kind(self) -> Next:
        """Decide what kind of trial may start now."""
        if self._failed is not None or self.asked_to_stop():
            return "stopped"
        return "done" if self._finished.is_set() else self._spending.next_kind(self._plan)

    def _running(self) -> list[Trial]:
        return [trial for trial in list(self.ledger.trials.values()) if trial.state == "running"]

    def _tell_steps(self) -> None:
        """Announce the step of each running trial."""
        for trial in self._running():
            reader = self._readers.setdefault(trial.number, JournalReader(trial.paths.metrics))
            with contextlib.suppress(StorageError):  # asked again at the next look
                if steps := list(reader.new()):
                    step, loss = steps[-1]["step"], steps[-1]["loss"]
                    said = f"trial {trial.number}: step {step} of {trial.total_steps}, training loss {loss:.4f}"
                    self.announce("phase", said, phase="train", trial=trial.number)

    def _stop_paused(self) -> None:
        """Stop the trials for good that users have asked to stop while no gang trains them."""
        for trial in [one for one in list(self.ledger.trials.values()) if one.state in ("waiting", "paused")]:
            with contextlib.suppress(StorageError):  # asked again at the next look
                if user_asks_to_end(trial.paths):
                    self.ledger.stopped(trial, _stopped_after(trial.step))
                    self._tell(trial)

    def _tell(self, trial: Trial) -> None:
        said = trial_line(self.ledger, trial)
        self.announce("trial", said, trial=trial.number, state=trial.state, **self._progress())

    def _serve_requests(self) -> None:
        with contextlib.suppress(StorageError):  # asked again at the next look
            for name in [one for one in self._mailbox.requests.names() if one not in self._seen]:
                self._seen.add(name)
                thread = threading.Thread(target=self._serve, args=(name,), daemon=True)
                self._serving.append(thread)
                thread.start()

    def _serve(self, name: str) -> None:
        """Carry out a request and answer it. An error ends the search: Tune would wait forever for the answer."""
        try:
            self._answer(name)
        except (GangLost, Interrupted):
            pass  # the search ends: a resume goes on with this trial
        except FleetuneError as error:  # no gang is left, or the storage is gone
            self._failed = self._failed or error
        except Exception as error:
            traceback.print_exc()
            self._failed = RunFailed(f"{type(error).__name__}: {error}")

    def _answer(self, name: str) -> None:
        """Train as requested, and record the answer.

        Raises:
            GangLost: the gang was lost while the sweep is stopped.
            Interrupted: the search ends, and the trial had no gang yet.
            FleetuneError: no gang is left, or the storage fails.
        """
        request = self._mailbox.requests.read(name)
        trial, is_lost = self.ledger.trials[request.trial], False
        try:
            answer = self._train(trial)
        except GangLost as error:
            if self.asked_to_stop():
                raise
            answer, is_lost = Answer(status="failed", reason=str(error)), True
        self._check_metric(answer)
        if answer.status == "failed" and (more := trained_before_failing(trial, answer)) is not None:
            self.ledger.trained(trial, more)
        self._recorded_s = time.monotonic()
        self.ledger.answered(trial, answer, self._spending.so_far(), is_lost)
        self._look_at_rung()
        if answer.status == "stopped" and self._failed is None and not self.asked_to_stop():
            self.ledger.stopped(trial, _stopped_after(answer.step))
        with self._answered_lock:
            limit_checkpoints(self.ledger, self.announce)
        self._tell(trial)
        judged = {self.ledger.sweep.judged: self.ledger.finite_score(trial)}
        status = "failed" if trial.state == "failed" else answer.status
        self._mailbox.answers.put(name, answer.model_copy(update={"metrics": judged, "status": status}))

    def _look_at_rung(self) -> None:
        """Compare trials at the later rung if nothing has been learned at the first one and the budget pays for it."""
        ledger = self.ledger
        with self._answered_lock:
            later = plan_if_later(ledger) if ledger.is_too_early else None
            if later is None:
                return
            before = stops_of(ledger.sweep, ledger.total_steps)[0]
            self._plan = later
            ledger.set_later()
        after = stops_of(ledger.sweep, ledger.total_steps)[0]
        said = f"nothing is learned in {many(before, 'step')}: trials are compared after step {after} instead"
        self.announce("phase", said, phase="rung")

    def _check_metric(self, answer: Answer) -> None:
        """Raise InputError if no trial has reported the judged metric, or a user's metric fails before the first step.

        The latter only until a trial has scored the base model.
        """
        judged, known = self.ledger.sweep.judged, answer.judged
        if self.ledger.base_score is None:
            check_first_metrics(answer)
        if known and judged not in known and not any(trial.scores for trial in list(self.ledger.trials.values())):
            raise SpecError.at("metric", missing_metric(judged, known))

    def _train(self, trial: Trial) -> Answer:
        """Train a trial up to its next score. Raises GangLost: again and again; FleetuneError: no gang is left."""
        ledger, until = self.ledger, next_stop(self.ledger.sweep, trial)
        if trial.impossible is not None:
            return Answer(status="failed", reason=trial.impossible)
        if trial.is_over or user_asks_to_end(trial.paths):
            return Answer(status="stopped", step=trial.step)
        if not trial.driver:
            trial.driver = take_run(trial.paths)
            remove_requests(trial.paths)
            self._count_unanswered(trial)
        task = GangTask(
            action="train",
            run=trial.paths.root,
            spec=trial.spec,
            until=until,
            cooldown_steps=cooldown_of(ledger.sweep, trial.total_steps) if until < trial.total_steps else 0,
            metric=ledger.sweep.judged,
            driver=trial.driver,
        )
        ledger.began(trial)
        said = f"training {format_trial(trial)} to step {until}"
        self.announce("phase", said, phase="train", trial=trial.number, until=until)
        return carried_out(self.gangs, task, self.asked_to_stop, lambda: self._count_unanswered(trial))

    def _count_unanswered(self, trial: Trial) -> None:
        """Count what a lost gang, or one of a killed driver, has trained up to the newest checkpoint."""
        if (found := unanswered(trial, self.ledger.tokens_per_run)) is not None:
            self.ledger.trained(trial, found)

    def _give_back(self) -> None:
        """End gangs for which no trial is left, in a thread, so that other jobs can use their slots."""
        is_ending = self._ending is not None and self._ending.is_alive()
        if self._gives_back and not is_ending and len(self.gangs) > self._gangs_needed():
            self._ending = threading.Thread(target=self._end_gangs, daemon=True)
            self._ending.start()

    def _end_gangs(self) -> None:
        self._spending.so_far()  # counts the time until now with the gangs that end
        if ended := self.gangs.give_back(self._gangs_needed()):
            said = f"given back: {many(ended, 'gang')}, for which no trial is left"
            self.announce("phase", said, phase="given-back", workers=list(self.gangs.workers_kept))

    def _gangs_needed(self) -> int:
        ledger, kind = self.ledger, self.next_kind()
        plan = untried_only(ledger, self._plan)
        most = most_to_train(ledger.searched, plan, kind, len(ledger.going_on), ledger.repeats_left)
        return int(max(1, min(most, len(self.gangs))))

    def _look_at_changes(self) -> None:
        """Apply the changes that users have asked for."""
        if self._finished.is_set():
            return
        with contextlib.suppress(StorageError):  # the next look tries again
            for name, change in self._changes.waiting():
                self._take_over(name, change)
                self._changes.done_with(name)

    def _take_over(self, name: str, change: Change) -> None:
        """Apply a change. Raises StorageError: the spec cannot be written, and nothing has changed."""
        ledger = self.ledger
        try:
            stored = stored_sweep(self.paths)
            if ledger.applying == (name, _digest(stored)):
                return  # it was applied, but could not be removed, or its driver was killed before that
            sweep = changed(stored, change)
            check_lengths(sweep, ledger.steps_of)
            # The base of the ledger has what the plan chose.
            planned = sweep.model_copy(update={"base": ledger.sweep.base})
            plan = plan_of(ledger, ledger.as_searched(planned))
        except SpecError as error:
            self.announce("warning", f"the sweep is not changed ({change}): {error}")
            return
        ledger.applies(name, _digest(sweep))
        storage.write_bytes(self.paths.spec, dump_spec(sweep))
        ledger.change(planned)
        self._plan = plan
        self.announce("phase", f"changed ({change}): searching {format_space(ledger.sweep)}", phase="changed")

    def _progress(self) -> dict[str, Any]:
        """Return facts of the search so far, for the queue."""
        ledger, step = self.ledger, steps_done(self.ledger)
        total = planned_steps(ledger, untried_only(ledger, self._plan))
        best = ledger.ranked()[0]
        facts: dict[str, Any] = {"step": step, "metrics": {}}
        if best.score is not None and best.state != "failed":
            facts["metrics"] = {ledger.sweep.judged: best.score, "trials": float(len(ledger.trials))}
        if total is not None:
            facts["total_steps"] = max(total, step)
            if (done := step - self._steps_before) > 0:
                facts["remaining_s"] = (time.monotonic() - self._began_s) / done * max(total - step, 0)
        return facts

    def _stop_running(self, within_s: float = math.inf) -> None:
        """Stop the running trials with a checkpoint, and wait for them. Trials without a gang get none."""
        threading.Thread(target=self.gangs.begin_no_more, daemon=True).start()
        until_s = time.monotonic() + within_s
        while any(thread.is_alive() for thread in self._serving) and time.monotonic() < until_s:
            for trial in self._running():
                with contextlib.suppress(StorageError):  # the next turn tries again
                    ask_to_save_and_end(trial.paths)
            time.sleep(4 * _POLL_S)
            self._relay.check()
        for trial in self._running():
            self.ledger.interrupted(trial)


def _digest(sweep: SweepSpec) -> str:
    return hashlib.sha256(dump_spec(sweep)).hexdigest()


def _stopped_after(step: int) -> str:
    return f"stopped on request after step {step}"
