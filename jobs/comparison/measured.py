"""Reads the figures of a comparison from the directories of its sweeps. Needs no cluster."""

from __future__ import annotations

from typing import cast

from cluster.errors import StorageError
from cluster.text import many
from jobs.comparison.figures import COMPARISON_VERSION, Comparison, MethodFigures, RunFigures, figures_of_runs
from jobs.comparison.page import comparison_page
from jobs.run.checkpoints import committed_steps, read_commit
from jobs.run.outcome import Outcome, Status, read_outcome
from jobs.run.paths import JobPaths, comparison_root
from jobs.run.record import read_steps
from jobs.run.summary import Now, summarise, utc_now
from jobs.search.planned import steps_done
from jobs.search.report.edge import edge_of
from jobs.search.report.status import DriverState, read_driver_state, read_status
from jobs.search.trial import Trial
from jobs.search.trials import Trials
from jobs.spec.compare import CompareSpec
from jobs.spec.finetune import Spec
from jobs.spec.load import load_sweep, load_to_run
from jobs.storage import files as storage
from jobs.storage.journal import Record, read_journal


def measure(spec: CompareSpec, paths: JobPaths, now: Now = utc_now, price: float | None = None) -> Comparison:
    """Return the figures of all methods so far, also of a search that is running.

    Args:
        price: see `Comparison`; None: the one in comparison.json, if that exists.

    Raises:
        StorageError: a file cannot be read.
    """
    if price is None and (kept := read_comparison(paths)) is not None:
        price = kept.price
    methods = tuple(figures_of(one.name, JobPaths(paths.method(one.name)), now) for one in spec.methods)
    resources = spec.base.resources
    return Comparison(
        metric=spec.judged,
        lower_is_better=spec.lower_is_better,
        device="GPU" if resources.gpus_per_worker else "CPU",
        methods=methods,
        seeds=spec.seeds,
        price=price,
        cpus_per_worker=resources.cpus_per_worker,
    )


def figures_of(name: str, paths: JobPaths, now: Now = utc_now) -> MethodFigures:
    """Return the figures of one method so far. Raises StorageError."""
    sweep = load_sweep(paths.spec)
    if sweep is None:
        raise StorageError(f"{paths.spec} is not the spec of a sweep: start a new comparison")
    trials, outcome = Trials(sweep, paths.root), read_outcome(paths)
    failed = outcome is not None and outcome.status is not Status.SUCCEEDED
    is_running = summarise(paths, now).status == "running"
    status = read_status(trials, read_driver_state(paths) if is_running else DriverState(), now())
    figures = MethodFigures(
        name=name,
        method=sweep.base.method.kind,
        settings=_settings(sweep.base),
        sweep=paths.root,
        status=None if outcome is None else outcome.status,
        reason=outcome.reason if outcome is not None and failed else None,
        trials=len(trials.trials),
        tokens=status.tokens,
        search_s=status.used_s,
        device_hours=status.device_hours,
    )
    best = trials.best
    if best is None:
        return figures
    repeats = trials.repeats_of(best)
    lost = [trial for trial in repeats if trial.state == "failed"]
    runs = [best, *(trial for trial in repeats if trial.state == "finished")]
    found = {
        "settings": _settings(best.spec),
        "values": best.values,
        "at_edge": edge_of(trials),
        "failed_seeds": len(lost),
        "failed_because": lost[0].reason if lost else None,
        **figures_of_runs([_run_of(trial) for trial in runs]),
    }
    return figures.model_copy(update=found)


def _settings(job: Spec) -> str:
    if job.method.kind == "lora":
        return f"rank {job.lora.rank}"
    return many(job.prompt.num_virtual_tokens, "virtual token") if job.method.kind == "prompt" else ""


def _run_of(trial: Trial) -> RunFigures:
    """Read the run of a trial. Raises StorageError."""
    events = read_journal(trial.paths.events)
    plan: Record = next((one["data"] for one in reversed(events) if one["kind"] == "plan"), {})
    before = [one["data"]["metrics"] for one in events if one["kind"] == "evaluated" and one["data"].get("step") == 0]
    steps = committed_steps(trial.paths)
    return RunFigures(
        metrics=trial.metrics,
        before=before[-1] if before else {},
        steps=read_steps(trial.paths),
        trained=plan.get("trainable"),
        parameters=plan.get("parameters"),
        checkpoint_bytes=read_commit(trial.paths, steps[-1]).bytes if steps else None,
    )


def steps_of(paths: JobPaths) -> int:
    """Return the optimizer steps of all trials of a method so far. Raises StorageError."""
    sweep = load_sweep(paths.spec)
    return 0 if sweep is None else steps_done(Trials(sweep, paths.root))


def write_comparison(paths: JobPaths, comparison: Comparison, page: bool = False) -> None:
    """Write comparison.json and, if `page`, comparison.html. Raises StorageError."""
    storage.write_bytes(paths.comparison, comparison.model_dump_json(indent=1).encode())
    if page:
        storage.write_bytes(paths.comparison_page, comparison_page(comparison, paths.name).encode())


def write_again_after(sweep: JobPaths) -> bool:
    """Write the files of the comparison that a sweep belongs to again, and return whether there was a need.

    There is none if the sweep stands alone, or if its comparison goes on, which writes them at its end.

    Raises:
        StorageError: a file cannot be read or written.
    """
    root = comparison_root(sweep.root)
    if root is None or read_outcome(paths := JobPaths(root)) is None:
        return False
    comparison = comparison_so_far(paths)
    if comparison is not None:
        write_comparison(paths, comparison, page=storage.exists(paths.comparison_page))
    return comparison is not None


def comparison_so_far(paths: JobPaths) -> Comparison | None:
    """Return the figures of a comparison. Sweeps that were resumed after it ended are measured again.

    Raises:
        StorageError: a file cannot be read.
    """
    spec, outcome = load_to_run(paths.spec), read_outcome(paths)
    if outcome is None and isinstance(spec, CompareSpec):
        return measure(spec, paths)
    if (kept := read_comparison(paths)) is None or outcome is None:
        return kept

    def newest(one: MethodFigures) -> MethodFigures:
        sweep = JobPaths(paths.method(one.name))
        return figures_of(one.name, sweep) if _went_on(sweep, outcome) else one

    return kept.model_copy(update={"methods": tuple(map(newest, kept.methods))})


def _went_on(sweep: JobPaths, comparison: Outcome) -> bool:
    """Whether a sweep was resumed after its comparison ended. False if the sweep's directory was removed."""
    if not storage.exists(sweep.spec):
        return False
    ended = read_outcome(sweep)
    return ended is None or ended.ended_at > comparison.ended_at


def read_comparison(paths: JobPaths) -> Comparison | None:
    """Read comparison.json; None if it does not exist. Raises StorageError, also if it is damaged."""
    return cast(
        "Comparison | None", storage.read_versioned(paths.comparison, COMPARISON_VERSION, Comparison.model_validate)
    )
