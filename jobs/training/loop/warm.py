"""A warm gang: workers that load the model and the rows once, then train one trial after another.

Before each trial, the weights, the optimizer and every setting that a trial may vary are reset. So a trial computes
what a fresh run with its spec would compute, to the last digit. A setting that cannot be reset (see
`jobs.search.rules.varying`) needs another gang.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from dataclasses import replace

from cluster.errors import Diverged, MetricFailed
from jobs.model_files.directory import local_model_dir
from jobs.run.metric_names import missing_metric
from jobs.spec.finetune import Spec
from jobs.spec.remedies import Forgetting
from jobs.training.loop.loop import begun, finish, load, ready, told_before_training, train_steps
from jobs.training.loop.measuring import HeldState, cooled_down, losses_along_first_step, on_host
from jobs.training.loop.restoring import restored
from jobs.training.loop.state import Loaded, LoopState, Run
from jobs.training.mailbox import Answer, GangTask, Mailbox, Status
from jobs.training.model.engine import forget_peak_memory
from jobs.training.model.host_memory import give_back_freed_memory
from jobs.training.reporter import Reporter
from jobs.training.worker_context import WorkerContext
from jobs.training.worker_input import Job


def serve(job: Job, worker: WorkerContext, first: int) -> LoopState:
    """Carry out the gang's tasks until it is told to end. Every rank must call it.

    Args:
        job: the base job; its run is the gang's directory.
        first: number of the first task.

    Raises:
        Exception: an error that may concern this rank alone, after which the gang cannot be used.
    """
    mailbox = Mailbox(job.run_root)
    with contextlib.closing(Reporter(job.paths, worker.rank)) as reporter:
        loaded = load(job, worker, reporter)
    runner = _TrialRunner(job, worker, loaded, HeldState.of(loaded.engine, is_new=True))
    if worker.rank == 0:
        mailbox.open()
    number = first
    while (task := mailbox.tasks.wait(number)).action != "end":
        began_s = time.monotonic()
        answer = runner.carry_out(task)
        if worker.rank == 0:
            mailbox.answers.put(number, answer.model_copy(update={"seconds": time.monotonic() - began_s}))
        number += 1
    return LoopState(step=number - first)


def without_remedies(spec: Spec) -> Spec:
    """Return a trial's spec without remedies, which would hide the effect of its learning rate or a divergence.

    Nor are speeds compared: trials are short, and their driver does not read their events. The model that is exported
    is that of the last step, whose score ranks the trial.
    """
    off = spec.with_value("remedies.outlier_steps", False).with_value("remedies.straggler", False)
    off = off.with_value("checkpoint.load_best_model_at_end", False)
    return off.with_value("remedies.forgetting", Forgetting())


class _TrialRunner:
    """A loaded engine, and the trial whose state it holds."""

    def __init__(self, job: Job, worker: WorkerContext, loaded: Loaded, base: HeldState) -> None:
        self._job, self._worker, self._loaded, self._base = job, worker, loaded, base
        self._other = base  # base state for the newest seed that differs from the job's
        self._before = dict[int, dict[str, float]]()  # eval_* before the first step, by the seed of the weights
        self._held: tuple[str, LoopState] | None = None  # root of a trial's run, and the state that the engine holds

    def carry_out(self, task: GangTask) -> Answer:
        assert task.spec is not None
        spec = without_remedies(task.spec)
        job = replace(self._job, spec=spec, run_root=task.run, driver=task.driver)
        worker, reporter = self._worker.for_run(job.paths, task.driver), Reporter(job.paths, self._worker.rank)
        run, state = None, None
        try:
            run = ready(replace(self._loaded, engine=self._loaded.engine.set_for(job.spec)), job, worker, reporter)
            state = self._state_of(run)
            forget_peak_memory(worker.device)
            if task.action == "probe":
                self._held = None
                found = losses_along_first_step(run, task.rates)
                return Answer(status="probed", losses=tuple(found.losses), tokens=found.tokens)
            if task.action == "export" and state.step < run.plan.total_steps:
                return Answer(status="failed", step=state.step, reason="its last checkpoint is gone")
            if task.action == "export":
                finish(run, state)
                return _answer("exported", run, state)
            return self._trained(run, state, task)
        except (Diverged, MetricFailed) as error:
            traceback.print_exc()  # to the rank's log
            when = ("before" if state is None else "later") if isinstance(error, MetricFailed) else None
            is_diverged = isinstance(error, Diverged)
            return Answer(status="failed", reason=str(error), diverged=is_diverged, metric_failed=when)
        finally:
            if run is not None:
                run.checkpoints.finish()
            reporter.close()
            worker.close()

    def _state_of(self, run: Run) -> LoopState:
        """Load the trial's newest state into the engine, and return it."""
        held, self._held = self._held, None
        if held is not None and held[0] == run.job.run_root:
            return held[1]
        self._base_of(run).put_back(run.engine)
        state = restored(run)
        if state.step > 0:
            return state
        if (known := self._before.get(run.job.spec.seed)) is None:
            state = begun(run, state)
            self._before[run.job.spec.seed] = state.metrics_before
            return state
        return told_before_training(run, replace(state, metrics_before=known))

    def _base_of(self, run: Run) -> HeldState:
        seed = run.job.spec.seed
        if seed == self._base.seed:
            return self._base
        if seed != self._other.seed:
            self._other = self._base  # frees the weights of the other seed before new ones are made
            weights = tuple(map(on_host, run.engine.new_weights(run.job.spec, local_model_dir(run.job.model))))
            self._other = replace(self._base, seed=seed, weights=weights)
        return self._other

    def _trained(self, run: Run, state: LoopState, task: GangTask) -> Answer:
        before, scores_all = state.metrics_before, run.job.spec.eval.eval_on_start
        if before and scores_all and task.metric and task.metric not in before:
            return Answer(status="failed", metrics=before, reason=missing_metric(task.metric, before))
        stop = min(task.until or run.plan.total_steps, run.plan.total_steps)
        start, state = state.step, replace(state, stopped=False)
        if start < stop:
            state = train_steps(run, state, stop, score_pause=not task.cooldown_steps)
        give_back_freed_memory()
        self._held = run.job.run_root, state
        if state.stopped:
            return _answer("stopped", run, state, start)
        if state.step == run.plan.total_steps:
            return _answer("finished", run, state, start)
        answer = _answer("paused", run, state, start)
        if task.cooldown_steps:
            cooled, tokens = cooled_down(run, state, task.cooldown_steps)
            answer = answer.model_copy(update={"cooled": cooled, "tokens": answer.tokens + tokens})
        return answer


def _answer(status: Status, run: Run, state: LoopState, start: int | None = None) -> Answer:
    done = range(state.step if start is None else start, state.step)
    return Answer(
        status=status,
        step=state.step,
        total_steps=run.plan.total_steps,
        tokens=run.tokens_of(*done),
        loss=state.loss,
        metrics=state.metrics if state.evaluated_at == state.step else {},
        base=state.metrics_before,
    )
