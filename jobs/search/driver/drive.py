"""Drives one sweep on a Ray cluster: prepares the data, starts the gangs, searches, and exports the best model."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from cluster.errors import DataError, Interrupted, OutOfMemory, StorageError
from cluster.ray.connection import is_own, keep_actors_here
from cluster.text import many
from jobs.data.order.stream import step_plan, tokens_per_run
from jobs.data.prepared import Prepared
from jobs.drivers.finetune.begin import Assignment
from jobs.drivers.finetune.machines import places_under_ray
from jobs.drivers.finetune.node_draining import Draining
from jobs.drivers.finetune.ray_driver import connected_as_given
from jobs.drivers.stop_request import StopRelay, StopRequest
from jobs.model_files.directory import supports_checkpointing
from jobs.planning import gang_of
from jobs.planning.memory import COPIED_BY_TRIALS
from jobs.preflight.ready import ready_data
from jobs.preflight.run_plan import (
    Announce,
    EarlierChoice,
    FindPlaces,
    earlier_choice,
    with_fields,
    with_planned_fields,
)
from jobs.run.events import Announcer
from jobs.run.manifest import run_facts
from jobs.run.outcome import Outcome, Status
from jobs.run.paths import JobPaths
from jobs.run.progress import Progress
from jobs.run.record import resume_command, write_manifest
from jobs.search.changes import Changes
from jobs.search.driver.conclusion import concluded_sweep
from jobs.search.driver.final import SweepDriver, end_earlier_final_runs, with_final_run
from jobs.search.driver.gangs import Gangs, end_earlier_gangs, gangs_that_fit
from jobs.search.driver.searching import Search
from jobs.search.ledger import Ledger
from jobs.search.planned import plan_of, planned_steps
from jobs.search.report.summary import summary_lines
from jobs.search.report.trial_text import leaderboard
from jobs.search.rules.budget import check_lengths, checked_plan, most_gangs
from jobs.search.rules.varying import engines, trial_spec
from jobs.search.spending import kind_within
from jobs.search.trials import Trials
from jobs.spec.finetune import PLANNED, Spec
from jobs.spec.sweep import SweepSpec
from jobs.storage import files as storage
from jobs.training.worker_input import Job

_NEEDED = ("ray.data", "jobs.training.on_ray.controller", "ray.tune", "optuna")  # modules that this process needs


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
    given, alone = assignment or Assignment(), is_own(address)
    gives_back = given.gives_back and (assignment is not None or not alone)  # others can use slots that no trial needs
    facts, drivers = run_facts(), paths.drivers
    end_earlier_gangs(drivers)
    end_earlier_final_runs(paths)
    announce("phase", "connecting to Ray", phase="connect")
    gang = gang_of(sweep.base)  # below, the workers of all gangs that a queue has assigned; without a queue, of one
    all_workers = replace(gang, num_workers=given.num_workers or gang.num_workers)
    with connected_as_given(sweep.base, all_workers, address, given, _NEEDED) as inventory:
        facts |= {"nodes": len(inventory.nodes), "cluster_cpus": inventory.cpus, "cluster_gpus": inventory.gpus}
        if not alone:
            keep_actors_here()
        prepared = ready_data(sweep.base, "ray", announce)
        _check_same_data(sweep, paths, prepared.manifest.fingerprint)
        write_manifest(paths, facts | {"data_fingerprint": prepared.manifest.fingerprint})
        count = _number_of_gangs(sweep, given, alone)
        find_places = functools.partial(places_under_ray, sweep.base, given.places, alone, count)
        ledger = _opened_ledger(sweep, prepared, find_places, paths, announce)
        base, plan = ledger.sweep.base, plan_of(ledger)
        # A directory for this driver, so that its gangs do not read the tasks of earlier drivers.
        own = storage.join(drivers, next_driver([*storage.list_names(drivers), *ledger.spent]))
        goes_on = kind_within(ledger, plan, ledger.spent) != "done"  # else earlier drivers have ended the search
        if goes_on:
            known = {"driver": own.rpartition("/")[2], "planned_steps": planned_steps(ledger, plan)}
            announce("phase", f"starting {many(count, 'gang')} of {gang_of(base)}", phase="workers", **known)
        supports = supports_checkpointing(base)
        job = Job(base, own, prepared.root, base.model.path, supports_checkpointing=supports)
        gangs = Gangs(job, count, alone, announce, given.places, engines(sweep) != [{}], goes_on)
        stop.defer()
        draining = Draining(paths, announce, given.places, stop)
        relay = StopRelay(stop, paths, announce)
        with _concluded(ledger, gangs, announce):
            search = Search(ledger, paths, own, gangs, announce, relay, plan, draining, gives_back)
            search.run()
            outcome = concluded_sweep(search)
        have_ended = gangs.end()
        if sweep.then == "final" and outcome.status is Status.SUCCEEDED:
            places = _places_of_one_gang(gangs, base, given, announce, gives_back and have_ended)
            driver = SweepDriver(paths, facts, stop, announce, progress, places, alone)
            outcome = with_final_run(ledger, outcome, driver)
    _tell_late_changes(paths, announce)
    return outcome


def _opened_ledger(
    sweep: SweepSpec, prepared: Prepared, find_places: FindPlaces, paths: JobPaths, announce: Announce
) -> Ledger:
    """Check the lengths of trials, plan a gang, and open the ledger, whose sweep has the planned base.

    Raises:
        InputError: the trials are too short to compare, or too long for the budget.
        OutOfMemory: the trials cannot fit.
    """
    split = prepared.split("train")

    def steps_of(job: Spec) -> int:
        return step_plan(job, split).total_steps

    check_lengths(sweep, steps_of)
    checked_plan(sweep, steps_of(sweep.base), tokens_per_run(sweep.base, split), 0.0)
    base = planned_base(sweep, prepared, find_places, paths, announce)
    planned = sweep.model_copy(update={"base": base})
    return Ledger(planned, paths.root, steps_of, tokens_per_run(base, split))


def next_driver(earlier: Iterable[str]) -> str:
    """Return the name of a new driver. Directories of earlier ones may have been removed."""
    return f"{1 + max((int(name) for name in earlier if name.isdigit()), default=0):02d}"


def _check_same_data(sweep: SweepSpec, paths: JobPaths, fingerprint: str) -> None:
    """Raise DataError if trials of an earlier driver had other data, because their scores could not be compared."""
    if not storage.exists(paths.manifest) or not Trials(sweep, paths.root).trials:
        return
    before = json.loads(storage.read_bytes(paths.manifest)).get("data_fingerprint")
    if before not in (None, fingerprint):
        raise DataError(
            f"the data has changed since the last trial: its fingerprint was {before}, and is {fingerprint} now. "
            "Restore the old files, or start a new sweep"
        )


def _number_of_gangs(sweep: SweepSpec, given: Assignment, alone: bool) -> int:
    """Return the number of gangs that a queue has assigned; without a queue, those that have room on the cluster.

    Args:
        alone: this process has started Ray, which ends with it.
    """
    gang = gang_of(sweep.base)
    if given.num_workers is not None:  # the slots of a comparison may be more than each of its sweeps can use
        return min(given.num_workers // gang.num_workers, most_gangs(sweep))
    return gangs_that_fit(gang, most_gangs(sweep), os.cpu_count() if alone else None)


def _places_of_one_gang(
    gangs: Gangs, base: Spec, given: Assignment, announce: Announcer, gives_back: bool
) -> tuple[str, ...] | None:
    """Return the assigned nodes of one gang, for the final run. `gives_back`: announce that the others are free."""
    kept = gangs.workers_kept[: gang_of(base).num_workers]
    if gives_back and len(gangs.workers_kept) > len(kept):
        said = "the final run needs one gang: the others are given back"
        announce("phase", said, phase="given-back", workers=list(kept))
    return None if given.places is None else tuple(given.places[worker] for worker in kept)


@contextlib.contextmanager
def _concluded(ledger: Ledger, gangs: Gangs, announce: Announcer) -> Iterator[None]:
    """Announce the results of the trials when the search has ended, also after an error, and close the ledger.

    After an error, end all gangs first. Nothing of Ray Train may run when Ray is shut down.
    """
    try:
        yield
    except Interrupted:  # a second signal
        gangs.leave()
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


def planned_base(
    sweep: SweepSpec, prepared: Prepared, find_places: FindPlaces, paths: JobPaths, announce: Announce
) -> Spec:
    """Plan a gang, and return the base with the fields of `train` that the plan chose. Later drivers keep the choice.

    If trials have different engines, nothing is chosen: each engine must fit with the values of the spec.

    Raises:
        OutOfMemory: the trials, or those with one of the engines, cannot fit.
    """
    base, each = sweep.base, engines(sweep)
    # A trial is not changed after it ran out of memory, so the plan may not change values of the spec either.
    fixed = base.model_copy(update={"remedies": base.remedies.model_copy(update={"out_of_memory": False})})

    def tell(kind: str, message: str, **data: Any) -> None:
        data.pop("remaining_s", None)  # of one trial
        announce(kind, message, **data)

    if each == [{}]:
        earlier = earlier_choice(fixed, paths)
        spec = with_fields(fixed, earlier.fields)
        planned = with_planned_fields(spec, earlier, prepared, find_places, paths, tell, copied_bytes=COPIED_BY_TRIALS)
        return base.model_copy(update={"train": planned.train})
    places, nothing = find_places(), EarlierChoice({}, frozenset())
    for engine in each:
        spec = trial_spec(fixed, engine)
        written = spec.train.model_copy(update={name: getattr(spec.train, name) for name in PLANNED})
        try:
            spec = spec.model_copy(update={"train": written})
            with_planned_fields(spec, nothing, prepared, lambda: places, paths, tell, copied_bytes=COPIED_BY_TRIALS)
        except OutOfMemory as error:
            said = ", ".join(f"{name} {value}" for name, value in engine.items())
            raise OutOfMemory(f"trials with {said}: {error}") from error
    return base


def _tell_late_changes(paths: JobPaths, announce: Announcer) -> None:
    """Warn of each change that came too late for this driver."""
    with contextlib.suppress(StorageError):
        for _, change in Changes(paths).waiting():
            announce("warning", f"{change} came too late. To apply it: {resume_command(paths)}")
