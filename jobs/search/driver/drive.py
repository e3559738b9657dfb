"""Drives one sweep on a Ray cluster: prepares the data, starts the gangs, searches, and exports the best model."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
from collections import Counter
from dataclasses import replace

from cluster.ray.connection import is_own, keep_actors_here
from cluster.text import many
from jobs.data.order.row_order import StepPlan
from jobs.data.order.stream import step_plan
from jobs.data.prepared import Split
from jobs.drivers.finetune.allocation import Assignment
from jobs.drivers.finetune.machines import places_under_ray
from jobs.drivers.finetune.node_draining import Draining
from jobs.drivers.finetune.ray_driver import connected_as_given
from jobs.drivers.finetune.stop_relay import StopRelay
from jobs.drivers.stop_request import StopRequest
from jobs.errors import Interrupted, RunFailed, StorageError
from jobs.planning import gang_of
from jobs.preflight.ready import ready_data
from jobs.run.events import Announcer
from jobs.run.manifest import run_facts
from jobs.run.outcome import Outcome, Status, read_outcome, write_outcome
from jobs.run.paths import JobPaths
from jobs.run.progress import Progress
from jobs.run.record import resume_command, write_manifest
from jobs.search.changes import Changes
from jobs.search.driver.final import SweepDriver, end_earlier_final_runs, with_final_run
from jobs.search.driver.gangs import Gangs, end_earlier_gangs, gangs_that_fit
from jobs.search.driver.planned_base import planned_base
from jobs.search.driver.searching import Search
from jobs.search.driver.spending import kind_within
from jobs.search.ledger import Ledger
from jobs.search.planned import planned_steps
from jobs.search.report.summary import summary_lines
from jobs.search.report.trial_text import leaderboard
from jobs.search.rules.budget import check_lengths, checked_plan, most_gangs
from jobs.search.rules.varying import engines
from jobs.spec.load import dump_spec
from jobs.spec.sweep import SweepSpec
from jobs.storage import files as storage
from jobs.training.mailbox import Order
from jobs.training.worker_input import Job

_NEEDED = ("ray.data", "ray.train.torch", "ray.tune", "optuna")  # modules that this process needs
ATTEMPTS = "drivers"


def drive_sweep(
    sweep: SweepSpec,
    paths: JobPaths,
    address: str | None,
    announce: Announcer,
    progress: Progress,
    stop: StopRequest,
    assignment: Assignment | None = None,
) -> Outcome:
    """Search until the budget is spent, and return the outcome of the best trial.

    With `then: final`, the outcome has the model of the final run.

    Args:
        assignment: slots of a queue for the workers of all gangs.

    Raises:
        InputError: the data or the gang is impossible.
        RunFailed: every trial failed, or the gangs failed.
        OutOfMemory: according to the plan, trials do not fit.
        MachinesFailed: an assigned node or its cluster is gone.
        Interrupted: a second Ctrl-C.
        Stopped: a request to stop before a gang was started.
    """
    given = assignment or Assignment()
    base, facts, drivers = sweep.base, run_facts(), storage.join(paths.root, ATTEMPTS)
    end_earlier_gangs(drivers)
    end_earlier_final_runs(paths)
    announce("phase", "connecting to Ray", phase="connect")
    gang = gang_of(base)
    workers = replace(gang, num_workers=given.num_workers or gang.num_workers)
    with connected_as_given(base, workers, address, given, _NEEDED) as inventory:
        facts |= {"nodes": len(inventory.nodes), "cluster_cpus": inventory.cpus, "cluster_gpus": inventory.gpus}
        if not is_own(address):
            keep_actors_here()
        prepared = ready_data(base, "ray", announce)
        write_manifest(paths, facts | {"data_fingerprint": prepared.manifest.fingerprint})
        split = prepared.split("train")
        steps = step_plan(base, split)
        check_lengths(sweep, lambda spec: step_plan(spec, split).total_steps)
        per_run = tokens_per_run(split, steps)
        checked_plan(sweep, steps.total_steps, per_run, 0.0)  # raises before anything is written
        if given.num_workers is not None:
            count = given.num_workers // gang.num_workers
        else:
            count = gangs_that_fit(gang, most_gangs(sweep), os.cpu_count() if is_own(address) else None)
        find_places = functools.partial(places_under_ray, base, given.places, is_own(address), count)
        base = planned_base(sweep, prepared, find_places, paths, announce)
        sweep = sweep.model_copy(update={"base": base})
        ledger = Ledger(sweep, paths.root, lambda spec: step_plan(spec, split).total_steps, per_run)
        plan = checked_plan(ledger.sweep, steps.total_steps, per_run, ledger.probe_steps)
        # A directory for this driver, so that its gangs do not read the orders of earlier drivers.
        own = storage.join(drivers, f"{1 + len(storage.list_names(drivers)):02d}")
        job = Job(base, own, prepared.root, base.model.path)
        known = {"driver": own.rpartition("/")[2], "planned_steps": planned_steps(ledger, plan)}
        goes_on = kind_within(ledger, plan, ledger.spent) != "done"  # else earlier drivers have ended the search
        if goes_on:
            announce("phase", f"starting {many(count, 'gang')} of {gang}", phase="workers", **known)
        gangs = Gangs(job, count, is_own(address), announce, given.places, engines(sweep) != [{}], goes_on)
        stop.defer()
        gives_back = assignment is not None or not is_own(address)
        draining = Draining(paths, announce, given.places, stop)
        relay = StopRelay(stop, paths, announce)
        try:
            search = Search(ledger, paths, own, gangs, announce, relay, plan, draining, gives_back)
            search.run()
            outcome = concluded_sweep(search)
        except Interrupted:  # a second signal: Ray ends the gangs, without a wait for them
            raise
        except BaseException:
            gangs.end()
            raise
        finally:
            if ledger.trials:
                announce("leaderboard", leaderboard(ledger))
                for line in summary_lines(ledger):
                    announce("summary", line)
            ledger.close()
        have_ended = gangs.end()
        if sweep.then == "final" and outcome.status is Status.SUCCEEDED:
            kept = gangs.workers_kept[: gang.num_workers]
            if gives_back and have_ended and len(gangs.workers_kept) > len(kept):
                said = "the final run needs one gang: the others are given back"
                announce("phase", said, phase="given-back", workers=list(kept))
            places = None if given.places is None else tuple(given.places[worker] for worker in kept)
            driver = SweepDriver(paths, facts, stop, announce, progress, places, is_own(address))
            outcome = with_final_run(ledger, outcome, driver)
    _tell_late_changes(paths, announce)
    return outcome


def _tell_late_changes(paths: JobPaths, announce: Announcer) -> None:
    """Warn of each change that came too late for this driver."""
    with contextlib.suppress(StorageError):
        for _, change in Changes(paths).waiting():
            announce("warning", f"{change} came too late. To apply it: {resume_command(paths)}")


def tokens_per_run(split: Split, plan: StepPlan) -> float:
    """Estimate the tokens of a run from the mean length of a row."""
    return int(split.index.num_tokens.sum()) * plan.total_rows / max(len(split), 1)


def concluded_sweep(search: Search) -> Outcome:
    """Return the outcome of a search that has ended. Export the model of its best trial if the sweep says so.

    Raises:
        RunFailed: every trial failed, or the export did.
    """
    ledger, now = search.ledger, datetime.datetime.now(datetime.UTC)
    if search.asked_to_stop():
        done = sum(trial.is_over for trial in ledger.trials.values())
        reason = f"stopped on request after {done} of {many(len(ledger.trials), 'trial')}; checkpoints are kept"
        return Outcome(status=Status.INTERRUPTED, reason=reason, ended_at=now)
    ledger.search_has_ended()
    if left := ledger.repeats_to_begin:
        said = f"the budget has no time for {many(left, 'repeat')} of the best trials with other seeds"
        search.announce("warning", f"{said}. To extend the budget: fleetune sweep extend")
    best = ledger.best
    if best is None:
        reasons = Counter(trial.reason for trial in ledger.trials.values() if trial.reason)
        (reason, count), *_ = reasons.most_common(1) or [("no trial was finished", 0)]
        if (log := search.gangs.log_of(reason)) is not None:
            search.announce("log", f"the end of {log[0]}:\n{log[1]}")
        raise RunFailed(f"no trial was trained to its end; {count} of {len(ledger.trials)} ended so: {reason}")
    storage.write_bytes(search.paths.best, dump_spec(best.spec))
    before = read_outcome(best.paths)
    model = before.model_path if before is not None else None
    if ledger.sweep.then == "export" and model is None:
        search.announce("phase", f"exporting the model of trial {best.number}", phase="export")
        order = Order(action="export", run=best.paths.root, spec=best.spec, driver=best.driver)
        answer = search.carried_out(order)
        if answer.status != "exported":
            raise RunFailed(f"the model of trial {best.number} could not be exported: {answer.reason}")
        model = best.paths.model
        if before is not None:
            write_outcome(best.paths, before.model_copy(update={"model_path": model}))
    return Outcome(
        status=Status.SUCCEEDED,
        step=best.step,
        metrics=best.metrics,
        evaluated_step=best.scored_step,
        model_path=model,
        ended_at=now,
    )
