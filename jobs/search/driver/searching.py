"""The search of one driver: it passes the trials' requests to gangs and records the answers in the ledger."""

from __future__ import annotations

import contextlib
import math
import threading
import time
import traceback
from typing import Any

from cluster.ray.connection import leaving_nodes
from cluster.text import many
from jobs.drivers.finetune.node_draining import Draining
from jobs.drivers.finetune.stop_relay import StopRelay
from jobs.errors import (
    FleetuneError,
    MachinesFailed,
    RunFailed,
    SpecError,
    StorageError,
)
from jobs.run.attempts import take_run
from jobs.run.events import Announcer
from jobs.run.paths import JobPaths
from jobs.search.changes import Change, Changes, changed, spec_in
from jobs.search.driver.checkpoint_space import CheckpointSpace
from jobs.search.driver.gangs import Gangs
from jobs.search.driver.spending import Spending
from jobs.search.driver.warm_gang import GangLost
from jobs.search.ledger import Ledger
from jobs.search.report.trial_text import trial_line, trial_words
from jobs.search.rules.auto import greatest_rate, prior_of, probed_rates
from jobs.search.rules.budget import Next, check_lengths, most_to_train, next_kind
from jobs.search.rules.rungs import cooldown_of, next_stop, stops_of
from jobs.search.rules.spec_text import space_words
from jobs.search.rules.varying import trial_spec
from jobs.search.shares import Shares, steps_done
from jobs.search.trial import Trial
from jobs.spec.load import dump_spec
from jobs.storage import files as storage
from jobs.storage.journal import JournalReader
from jobs.training.mailbox import Answer, Desk, Order, Request

_POLL_S = 0.05
_TELL_EVERY_S, _LOOK_EVERY_S = 20.0, 1.0
_MAX_LOST_GANGS = 3  # lost gangs under one trial, after which the trial has failed
_LOOK_AT_NODES_S = 5.0
_TUNE_ENDS_WITHIN_S = 5.0
_SAVED_WITHIN_S = 60.0  # to wait for checkpoints of running trials after the search has failed


class Search:
    """The search of one driver: requests of trials are passed to gangs until Tune is done."""

    def __init__(
        self,
        ledger: Ledger,
        paths: JobPaths,
        own: str,
        gangs: Gangs,
        announce: Announcer,
        relay: StopRelay,
        shares: Shares,
        draining: Draining,
        gives_back: bool = False,
    ) -> None:
        """
        Args:
            gives_back: gangs for which no trial is left are ended, so that other jobs can use their slots.
        """
        self.ledger, self.paths, self.gangs, self.announce = ledger, paths, gangs, announce
        self._relay, self._shares, self._draining = relay, shares, draining
        self._own = own  # directory of this driver
        self._desk = Desk(own)
        self._seen: set[str] = set()
        self._serving: list[threading.Thread] = []
        self._answered_lock = threading.Lock()
        self._space = CheckpointSpace(ledger, announce)
        self._began_s = self._told_s = self._looked_s = self._saw_nodes_s = self._gave_back_s = time.monotonic()
        self._steps_before = self._steps
        self._saw_changes_s, self._changes = 0.0, Changes(paths)
        self._gives_back = gives_back
        self._ending: threading.Thread | None = None  # ends gangs for which no trial is left
        self._spending = Spending(ledger, gangs, own.rpartition("/")[2])
        self._finished = False
        self._readers: dict[int, JournalReader] = {}  # of the metrics of each trial
        self._failed: FleetuneError | None = None  # such as that no gang is left, or that an actor of Tune died
        self._tuner_runs, self._left = threading.Event(), threading.Event()

    def run(self) -> None:
        """Search until Tune is done. Raises FleetuneError: no gang is left; Interrupted: a second signal."""
        done: dict[str, Any] = {}
        tune = threading.Thread(target=self._tune, args=(done,), name="tune", daemon=True)
        tune.start()
        try:
            while tune.is_alive():
                self._serve_requests()
                self._tell_steps()
                self._look_at_nodes()
                self._look_at_changes()
                self._give_back()
                self._relay.check()
                self._failed = self._failed or self.gangs.failure
                if self._failed is not None:
                    self._stop_running(_SAVED_WITHIN_S)
                    raise self._failed
                if self.asked_to_stop():
                    self._stop_running()
                    return
                time.sleep(_POLL_S)
        finally:  # a call that runs while Ray shuts down ends this process at once
            self._left.set()
            tune.join(_TUNE_ENDS_WITHIN_S if self._tuner_runs.is_set() else 0.0)
        if self._ending is not None:
            self._ending.join()  # the final run must not take a gang that is about to be given back
        if "error" in done:
            raise done["error"]

    def _bound_rate(self) -> None:
        """Have a gang measure the loss after one step at several learning rates, and bound the rate by the result.

        Raises:
            FleetuneError: no gang could be started.
        """
        ledger = self.ledger
        rates = () if ledger.is_bounded else probed_rates(ledger.sweep)
        if not rates:
            return
        self.announce("phase", f"looking for the greatest learning rate, up to {rates[-1]:.2g}", phase="probe")
        probe = JobPaths(storage.join(self._own, "probe"))
        spec = trial_spec(ledger.sweep.base, prior_of(ledger.sweep))  # the first trial's: the gang has its engine then
        order = Order(action="probe", run=probe.root, spec=spec, rates=rates, driver=take_run(probe))
        try:
            answer = self.gangs.carry_out(order)
        except GangLost as error:
            self.announce("warning", f"{error}: the learning rate is not bounded")
            return
        greatest = greatest_rate(rates, answer.losses) if answer.status == "probed" else None
        ledger.set_bound(greatest, answer.tokens)
        if greatest is not None:
            said = f"one step at {greatest:.2g} makes the loss worse: higher learning rates are not tried"
            self.announce("phase", said, phase="probe")

    def _tune(self, done: dict[str, Any]) -> None:
        try:
            from jobs.search.tuning.tuner import Callbacks, make_tuner

            self._bound_rate()
            driver = Callbacks(lambda: len(self.gangs), self.next_kind, self._finish, self._lost, self._left.is_set)
            self._tuner_runs.set()
            make_tuner(self.ledger, self.paths.root, self._own, driver).fit()
        except FleetuneError as error:
            done["error"] = error
        except Exception as error:
            traceback.print_exc()
            done["error"] = RunFailed(f"Ray Tune failed: {type(error).__name__}: {error}")

    def _lost(self, trial: Trial) -> None:
        """End the search: the Ray Tune actor that waits for this trial's score has died."""
        said = f"Ray Tune's actor for trial {trial.number} has ended; its log is among those of this Ray"
        self._failed = self._failed or MachinesFailed(said)

    def asked_to_stop(self) -> bool:
        """Whether the sweep was asked to stop. Looks for the file of `fleetune stop` once a second."""
        if time.monotonic() - self._looked_s > _LOOK_EVERY_S:
            self._looked_s = time.monotonic()
            with contextlib.suppress(StorageError):  # asked again a second later
                if storage.exists(self.paths.stop_request):
                    self._relay.stop.ask("file", "fleetune stop")
        return self._relay.stop.asked

    def next_kind(self) -> Next:
        """Decide what kind of trial may start now."""
        if self._failed is not None or self.asked_to_stop():
            return "stopped"
        ledger = self.ledger
        if self._finished:
            return "done"
        to_repeat = ledger.to_repeat() is not None and self._spending.leaves_a_repeat()
        searched = ledger.searched
        kind = next_kind(
            searched, self._shares.plan, self._spending.used(self._shares.runs), bool(ledger.going_on), to_repeat
        )
        if kind == "done" and any(trial.repeats and not trial.is_over for trial in list(ledger.trials.values())):
            return "wait"
        compared = [trial for trial in searched if not trial.without_rungs]
        if kind == "whole" and compared and not any(trial.scores for trial in compared):
            return "done"  # all have failed
        return kind

    def _finish(self) -> None:
        """Record that Ray Tune will ask for no more trials."""
        self._finished = True

    def _tell_steps(self) -> None:
        """Announce the step of each running trial, every 20 seconds."""
        if time.monotonic() - self._told_s < _TELL_EVERY_S:
            return
        self._told_s = time.monotonic()
        for trial in [trial for trial in list(self.ledger.trials.values()) if trial.state == "running"]:
            reader = self._readers.setdefault(trial.number, JournalReader(trial.paths.metrics))
            with contextlib.suppress(StorageError):  # asked again at the next look
                if steps := list(reader.new()):
                    step, loss = steps[-1]["step"], steps[-1]["loss"]
                    said = f"trial {trial.number}: step {step} of {trial.total_steps}, training loss {loss:.4f}"
                    self.announce("phase", said, phase="train", trial=trial.number)

    def _serve_requests(self) -> None:
        names = list[str]()
        with contextlib.suppress(StorageError):  # asked again at the next look
            names = self._desk.requests.names()
        for name in names:
            if name in self._seen:
                continue
            self._seen.add(name)
            thread = threading.Thread(target=self._serve, args=(name,), daemon=True)
            self._serving.append(thread)
            thread.start()

    def _serve(self, name: str) -> None:
        """Carry out a request and answer it. An error ends the search, because Tune would wait forever."""
        try:
            self._answer(name)
        except FleetuneError as error:  # no gang is left, or the storage is gone
            self._failed = error
        except Exception as error:
            traceback.print_exc()
            self._failed = RunFailed(f"{type(error).__name__}: {error}")

    def _answer(self, name: str) -> None:
        """Train as requested, and record the answer. Raises FleetuneError: no gang is left, or the storage fails."""
        request = self._desk.requests.read(name, Request)
        trial = self.ledger.trials[request.trial]
        answer = self._train(trial)
        self._check_metric(answer)
        self.ledger.answered(trial, answer, self._spending.so_far())
        self._look_at_rung()
        if answer.status == "stopped" and self._failed is None and not self.asked_to_stop():
            self.ledger.stopped(trial, f"stopped by hand after step {answer.step}")
        self._space.keep_within()
        said = trial_line(self.ledger, trial)
        self.announce("trial", said, trial=trial.number, state=trial.state, **self._progress())
        judged = {self.ledger.sweep.judged: self.ledger.finite_score(trial)}
        status = "failed" if trial.state == "failed" else answer.status
        self._desk.answers.put(name, answer.model_copy(update={"metrics": judged, "status": status}))

    def _look_at_rung(self) -> None:
        """Compare trials at the later rung if nothing has been learned at the first one and the budget pays for it."""
        ledger = self.ledger
        with self._answered_lock:
            later = Shares.if_later(ledger) if ledger.is_too_early else None
            if later is None:
                return
            before = stops_of(ledger.sweep, ledger.total_steps)[0]
            self._shares = later
            ledger.set_later()
        after = stops_of(ledger.sweep, ledger.total_steps)[0]
        said = f"nothing is learned in {many(before, 'step')}: trials are compared after step {after} instead"
        self.announce("phase", said, phase="rung")

    def _check_metric(self, answer: Answer) -> None:
        """Raise SpecError if the job does not report the judged metric, and no trial ever did."""
        judged, known = self.ledger.sweep.judged, answer.judged
        if known and judged not in known and not any(trial.scores for trial in list(self.ledger.trials.values())):
            raise SpecError.at("metric", f"the job reports no {judged}; it reports {', '.join(sorted(known))}")

    def _train(self, trial: Trial) -> Answer:
        """Train a trial up to its next score. Raises FleetuneError: no gang is left."""
        ledger, until = self.ledger, next_stop(self.ledger.sweep, trial)
        if trial.impossible is not None:
            return Answer(status="failed", reason=trial.impossible)
        if not trial.driver:
            trial.driver = take_run(trial.paths)
            for gone in (trial.paths.stop_request, trial.paths.save_request, trial.paths.outcome):
                storage.remove_file(gone)  # of an earlier driver
        order = Order(
            action="train",
            run=trial.paths.root,
            spec=trial.spec,
            until=until,
            cooldown_steps=cooldown_of(ledger.sweep, trial.total_steps) if until < trial.total_steps else 0,
            metric=ledger.sweep.judged,
            driver=trial.driver,
        )
        ledger.began(trial)
        said = f"training {trial_words(trial)} to step {until}"
        self.announce("phase", said, phase="train", trial=trial.number, until=until)
        return self.carried_out(order)

    def carried_out(self, order: Order) -> Answer:
        """Have a gang carry out an order; another gang if the first is lost. Raises FleetuneError: no gang is left."""
        losses = 0
        while True:
            try:
                return self.gangs.carry_out(order)
            except GangLost as error:
                losses += 1
                if losses >= _MAX_LOST_GANGS:
                    return Answer(status="failed", reason=f"its gang was lost {losses} times; the last time {error}")

    def _look_at_nodes(self) -> None:
        """Check whether Ray is about to take nodes away, and whether checkpoints were requested."""
        if time.monotonic() - self._saw_nodes_s > _LOOK_AT_NODES_S:
            self._draining.look(leaving_nodes())
            self._saw_nodes_s = time.monotonic()
            self._pass_on_save_request()

    def _give_back(self) -> None:
        """Once a second, end gangs for which no trial is left, so that other jobs can use their slots."""
        if not self._gives_back or time.monotonic() - self._gave_back_s < _LOOK_EVERY_S:
            return
        self._gave_back_s = time.monotonic()
        is_free = self._ending is None or not self._ending.is_alive()
        if is_free and len(self.gangs) > self._gangs_needed():
            self._ending = threading.Thread(target=self._end_gangs, daemon=True)
            self._ending.start()

    def _end_gangs(self) -> None:
        self._spending.so_far()  # with those that end
        if ended := self.gangs.give_back(self._gangs_needed()):
            said = f"given back: {many(ended, 'gang')}, for which no trial is left"
            self.announce("phase", said, phase="given-back", workers=list(self.gangs.workers_kept))

    def _gangs_needed(self) -> int:
        ledger, kind = self.ledger, self.next_kind()
        most = most_to_train(ledger.searched, self._shares.plan, kind, len(ledger.going_on), ledger.repeats_left)
        return int(max(1, min(most, len(self.gangs))))

    def _look_at_changes(self) -> None:
        """Apply waiting changes, once a second."""
        if self._finished or time.monotonic() - self._saw_changes_s < _LOOK_EVERY_S:
            return
        self._saw_changes_s = time.monotonic()
        with contextlib.suppress(StorageError):  # looked at again later
            for name, change in self._changes.waiting():
                self._take_over(change)
                self._changes.done_with(name)

    def _take_over(self, change: Change) -> None:
        """Apply a change. Raises StorageError: the spec cannot be written, and nothing has changed."""
        ledger = self.ledger
        try:
            sweep = changed(spec_in(self.paths), change)
            check_lengths(sweep, ledger.steps_of)
            # The base of the ledger has what the plan chose.
            planned = sweep.model_copy(update={"base": ledger.sweep.base})
            now = ledger.as_searched(planned)
            shares = Shares.of(now, ledger.total_steps, ledger.tokens_per_run, ledger.probe_steps)
        except SpecError as error:
            self.announce("warning", f"the sweep is not changed ({change}): {error}")
            return
        storage.write_bytes(self.paths.spec, dump_spec(sweep))
        ledger.change(planned)
        self._shares = shares
        self.announce("phase", f"changed ({change}): searching {space_words(ledger.sweep)}", phase="changed")

    def _pass_on_save_request(self) -> None:
        """Pass a request for a checkpoint from the sweep to its running trials."""
        with contextlib.suppress(StorageError):  # looked at again later
            if not storage.exists(self.paths.save_request):
                return
            storage.remove_file(self.paths.save_request)
            for trial in [one for one in list(self.ledger.trials.values()) if one.state == "running"]:
                storage.write_bytes(trial.paths.save_request, b"of the sweep")

    @property
    def _steps(self) -> int:
        """Optimizer steps that all trials have completed."""
        return steps_done(self.ledger)

    def _progress(self) -> dict[str, Any]:
        """Facts of the search so far, for the queue."""
        ledger, total = self.ledger, self._shares.steps(self.ledger)
        best = ledger.ranked()[0]
        facts: dict[str, Any] = {"step": self._steps, "metrics": {}}
        if best.score is not None and best.state != "failed":
            facts["metrics"] = {ledger.sweep.judged: best.score, "trials": float(len(ledger.trials))}
        if total is not None:
            done, passed_s = facts["step"] - self._steps_before, time.monotonic() - self._began_s
            left = max(total - facts["step"], 0)
            facts |= {"total_steps": max(total, facts["step"])}
            facts |= {"remaining_s": passed_s / done * left} if done > 0 else {}
        return facts

    def _stop_running(self, within_s: float = math.inf) -> None:
        """Stop the running trials with a checkpoint, and wait for them."""
        until_s = time.monotonic() + within_s
        while any(thread.is_alive() for thread in self._serving) and time.monotonic() < until_s:
            for trial in list(self.ledger.trials.values()):
                if trial.state == "running":
                    try:
                        storage.write_bytes(trial.paths.stop_request, b"the sweep is stopped")
                    except StorageError:
                        continue
            time.sleep(4 * _POLL_S)
            self._relay.check()
