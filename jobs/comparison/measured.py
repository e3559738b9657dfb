"""Reads the figures of a comparison from the directories of its sweeps. Needs no cluster."""

from __future__ import annotations

from cluster.errors import StorageError
from jobs.comparison.figures import COMPARISON_VERSION, Comparison, MethodFigures, RunFigures, figures_of_runs
from jobs.run.checkpoints import committed_steps, read_commit
from jobs.run.outcome import Status, read_outcome
from jobs.run.paths import JobPaths
from jobs.run.record import read_steps
from jobs.search.trial import Trial
from jobs.search.trials import Trials
from jobs.spec.compare import CompareSpec
from jobs.spec.finetune import Spec
from jobs.spec.load import load_sweep
from jobs.storage import files as storage
from jobs.storage.journal import Record, read_journal


def measure(spec: CompareSpec, paths: JobPaths) -> Comparison:
    """Return the figures of all methods so far. Raises StorageError."""
    methods = tuple(figures_of(one.name, JobPaths(paths.method(one.name))) for one in spec.methods)
    device = "GPU" if spec.base.resources.gpus_per_worker else "CPU"
    return Comparison(metric=spec.judged, lower_is_better=spec.lower_is_better, device=device, methods=methods)


def figures_of(name: str, paths: JobPaths) -> MethodFigures:
    """Return the figures of one method so far. Raises StorageError."""
    sweep = load_sweep(paths.spec)
    if sweep is None:
        raise StorageError(f"{paths.spec} is not the spec of a sweep: start a new comparison")
    trials, outcome = Trials(sweep, paths.root), read_outcome(paths)
    failed = outcome is not None and outcome.status is not Status.SUCCEEDED
    figures = MethodFigures(
        name=name,
        method=sweep.base.method.kind,
        settings=_settings(sweep.base),
        sweep=paths.root,
        status=None if outcome is None else outcome.status,
        reason=outcome.reason if outcome is not None and failed else None,
        trials=len(trials.trials),
        tokens=trials.tokens,
        search_s=trials.seconds,
        device_hours=trials.device_hours,
    )
    best = trials.best
    if best is None:
        return figures
    runs = [best, *(trial for trial in trials.repeats_of(best) if trial.state == "finished")]
    return figures.model_copy(update={"values": best.values, **figures_of_runs([_run_of(trial) for trial in runs])})


def _settings(job: Spec) -> str:
    if job.method.kind == "lora":
        return f"rank {job.lora.rank}"
    return f"{job.prompt.num_virtual_tokens} virtual tokens" if job.method.kind == "prompt" else ""


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


def write_comparison(paths: JobPaths, comparison: Comparison) -> None:
    storage.write_bytes(paths.comparison, comparison.model_dump_json(indent=1).encode())


def read_comparison(paths: JobPaths) -> Comparison | None:
    """Read comparison.json; None if it does not exist. Raises StorageError if a newer release wrote it."""
    raw = storage.read_versioned(paths.comparison, COMPARISON_VERSION)
    return None if raw is None else Comparison.model_validate(raw)
