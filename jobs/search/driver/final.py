"""The final run of a sweep: the best values are trained once more, on all samples, the held-out ones included.

`drive` calls `with_final_run` after the gangs have ended. The run has its own directory inside that of the sweep.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import Interrupted, StorageError
from jobs.drivers.finetune.ray_driver import Driver, trained
from jobs.drivers.stop_request import StopRequest
from jobs.planning import with_workers
from jobs.run.attempts import take_run
from jobs.run.events import Announcer, Watch
from jobs.run.outcome import Outcome, Status, read_outcome
from jobs.run.paths import FINAL_RUN, JobPaths
from jobs.run.progress import Progress
from jobs.run.record import concluded, open_run, reopen_run
from jobs.run.resume import differences
from jobs.search.planned import steps_done
from jobs.search.report.trial_text import format_values
from jobs.search.trials import Trials
from jobs.spec.evaluation import Eval
from jobs.spec.finetune import Spec
from jobs.spec.load import load_spec
from jobs.spec.remedies import Forgetting
from jobs.storage import files as storage

_LOOK_EVERY_S = 1.0  # for requests for a checkpoint; each look asks the storage


@dataclass(frozen=True)
class SweepDriver:
    """What the driver of a sweep passes to its final run.

    Attributes:
        facts: content of the manifest.
        places: node of each worker of the sweep, as a queue assigned it; None lets Ray choose.
        alone: this process has started Ray, which ends with it.
    """

    paths: JobPaths
    facts: Mapping[str, Any]
    stop: StopRequest
    announce: Announcer
    progress: Progress
    places: tuple[str, ...] | None
    alone: bool


def final_spec(best: Spec, sweep_name: str) -> Spec:
    """Return the best trial's spec without held-out samples and without fields that need them. Pure."""
    scored = {"metric_for_best_model": None, "greater_is_better": None, "load_best_model_at_end": False}
    return best.model_copy(
        update={
            "name": f"{sweep_name[:56]}-final",
            "data": best.data.model_copy(update={"eval_fraction": None}),
            # The rows of an evaluation stay: they are checked together with attn_implementation.
            "eval": Eval(per_device_eval_batch_size=best.eval.per_device_eval_batch_size),
            "checkpoint": best.checkpoint.model_copy(update=scored),
            "remedies": best.remedies.model_copy(update={"forgetting": Forgetting()}),
        }
    )


def final_paths(sweep: JobPaths, spec: Spec) -> tuple[JobPaths, bool]:
    """Return the directory of the final run with this spec, and whether there is such a run already.

    The directory is `final`; or `final-2` and so on, if earlier final runs had other values.

    Raises:
        StorageError: the sweep's directory cannot be read.
    """
    found = map(sweep.final, itertools.count(1))
    paths = next(one for one in found if not storage.exists(one.spec) or not differences(load_spec(one.spec), spec))
    return paths, storage.exists(paths.spec)


def end_earlier_final_runs(sweep: JobPaths) -> None:
    """Make the workers of earlier drivers' final runs end, in case they have survived their Ray cluster."""
    for name in storage.list_names(sweep.root):
        if FINAL_RUN.fullmatch(name):
            take_run(JobPaths(storage.join(sweep.root, name)))


def with_final_run(trials: Trials, found: Outcome, driver: SweepDriver) -> Outcome:
    """Train the best values on all samples, unless that is done, and return the sweep's outcome.

    Args:
        found: the outcome of the search, which has succeeded.

    Raises:
        StorageError: the sweep's directory cannot be read or written.
    """
    best = trials.best
    assert best is not None, "the search has succeeded"
    spec = final_spec(best.spec, trials.sweep.name)
    paths, is_there = final_paths(driver.paths, spec)
    steps = steps_done(trials)
    before = read_outcome(paths) if is_there else None
    if before is not None and before.status is Status.SUCCEEDED:
        driver.announce("phase", f"the final run has succeeded before: {paths.root}", phase="final", steps=steps)
        return with_outcome_of_final_run(found, before, paths)
    paths = reopen_run(paths.root, spec) if is_there else open_run(spec, paths.root)
    verb = "going on to train" if is_there else "training"
    said = f"{verb} the best values once more on all samples ({format_values(best.values)}), in {paths.root}"
    driver.announce("phase", said, phase="final", steps=steps)
    with contextlib.closing(Announcer(paths, driver.progress)) as announce:
        final = concluded(paths, lambda: _trained(spec, paths, announce, driver), announce)
    return with_outcome_of_final_run(found, final, paths)


def _trained(spec: Spec, paths: JobPaths, announce: Announcer, driver: SweepDriver) -> Outcome:
    """Train the final run, or raise any error of `trained`."""
    driver_id, size = take_run(paths), spec.resources.num_workers
    places = None if driver.places is None else driver.places[:size]
    watch, stop = _FinalWatch(driver.paths, paths, driver.progress), driver.stop
    if stop.asked or storage.exists(driver.paths.stop_request):
        raise Interrupted("stopped on request before the first step")
    with stop.raising():
        own = Driver(paths, driver_id, driver.facts, stop, announce, watch, places, driver.alone)
        return trained(with_workers(spec, size), own)


class _FinalWatch(Watch):
    """Shows new events of the final run. Once a second, passes requests for a checkpoint of the sweep on to it."""

    def __init__(self, sweep: JobPaths, final: JobPaths, progress: Progress) -> None:
        super().__init__(final, progress)
        self._sweep, self._final = sweep, final
        self._looked_s = time.monotonic()

    def look_when_due(self) -> None:
        super().look_when_due()
        if time.monotonic() - self._looked_s > _LOOK_EVERY_S:
            self._looked_s = time.monotonic()
            pass_on_save_request(self._sweep, [self._final])


def pass_on_save_request(sweep: JobPaths, runs: Sequence[JobPaths]) -> None:
    """Pass a request for a checkpoint from the sweep to these runs of it."""
    with contextlib.suppress(StorageError):  # the next look tries again
        if storage.exists(sweep.save_request):
            storage.remove_file(sweep.save_request)
            for run in runs:
                storage.write_bytes(run.save_request, b"of the sweep")


def with_outcome_of_final_run(found: Outcome, final: Outcome, paths: JobPaths) -> Outcome:
    """Return the outcome of a sweep whose search has succeeded, from the outcome of its final run. Pure.

    Step and metrics stay those of the best trial: the final run has no held-out samples.
    """
    if final.status is Status.SUCCEEDED:
        return found.model_copy(update={"model_path": final.model_path, "ended_at": final.ended_at})
    if final.status is Status.INTERRUPTED:
        reason = f"the search has ended, and the final run was interrupted: {final.reason}"
    else:
        why, logs = str(final.reason).rstrip("."), f"Its logs: {paths.logs}"
        is_useless = final.bad_input or final.diverged
        again = "" if is_useless else ". --resume trains it again, from its newest checkpoint if it has one"
        reason = f"the search has ended, but the final run failed: {why}. {logs}{again}"
    update = {"metrics": found.metrics, "step": found.step, "evaluated_step": found.evaluated_step, "reason": reason}
    return final.model_copy(update=update | {"model_path": None, "metrics_before": {}, "confusion": None})
