"""Acts when an evaluation shows that the model forgets. The rules are in `jobs.remedies.forgetting`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from jobs.planning.replay import raised_again, replay_share
from jobs.remedies import forgetting
from jobs.remedies.forgetting import Act
from jobs.remedies.outliers import with_counts
from jobs.run.checkpoints import Best
from jobs.run.metric_names import GENERAL_LOSS
from jobs.run.remedies import RemedyReport
from jobs.training.loop.restoring import gone_back
from jobs.training.loop.saving import best_score, bests, set_aside
from jobs.training.loop.state import LoopState, Run


def act_of(run: Run, state: LoopState) -> Act | None:
    """Decide what the newest evaluation requires; None if its loss is within the bound, or if there is no bound."""
    return forgetting.act_of(run.job.spec.remedies.forgetting, state.metrics_before, state.metrics, _times(run, state))


def _times(run: Run, state: LoopState) -> int:
    return forgetting.times_gone_back(run.job.spec.remedies.forgetting, state.rate_cuts, state.replay_raises)


def remedied(run: Run, state: LoopState) -> LoopState:
    """Load the best state within the bound, or the first one, and change what the spec's rule says.

    Every rank must call it.
    """
    spec, best, times = run.job.spec, best_score(run.job.spec, state), _times(run, state) + 1
    rule, before = spec.remedies.forgetting, state.metrics_before
    last = times == forgetting.MOST_TIMES  # then keep the best state: from the start, none as good might follow
    if best is not None and not last and not forgetting.has_room(rule, before, best.metrics):
        state, best = replace(state, set_aside=set_aside(run, state, best)), None
    earlier = gone_back(run, state, lambda: _up_to(best, run.reader.candidates()))
    raises_replay = rule.action == "raise_replay"
    history = with_counts(earlier.history, state.history, same_rows=not raises_replay)
    # Save soon: if the process ended before the next checkpoint, the number of times would be lost.
    earlier = replace(earlier, history=history, save_due=True)
    if raises_replay:
        raises = raised_again(state.replay_raises, earlier.step)
        share_before, share = (replay_share(spec, number) for number in (times - 1, times))
        earlier = replace(earlier, replay_raises=raises, expected_loss=None)  # the next step has other rows
        how, changed = forgetting.format_replay(share_before, share), {"replay_share": share}
        advice = f"give the sources with replay {share:.1%} of the rows of data.train"
    else:
        rate = spec.train.learning_rate * state.history.rate_factor * forgetting.rate_factor(times)
        earlier, how = replace(earlier, rate_cuts=times), forgetting.format_rate(rate)
        changed, advice = {"learning_rate": rate}, f"set train.learning_rate to at most {rate:.3g}"
    report = forgetting.return_report(rule, before, state.metrics, state.step, earlier.step, how, advice)
    _tell(run, state, report, stage=rule.action, number=times, to_step=earlier.step, **changed)
    return earlier


def _up_to(best: Best | None, saved: Iterable[int]) -> list[int]:
    """Return the step of the best state, and saved ones before it in case that its checkpoint is damaged."""
    return [] if best is None else sorted((step for step in saved if step <= best.step), reverse=True)


def stop_of(run: Run, state: LoopState) -> RemedyReport:
    """Describe the end of a run whose model has forgotten more than the bound allows."""
    rule, best = run.job.spec.remedies.forgetting, _exported(run, state)
    return forgetting.stop_report(rule, state.metrics_before, state.metrics, state.step, run.plan.total_steps, best)


def _exported(run: Run, state: LoopState) -> Best | None:
    return next(iter(bests(run.job.spec, state)), None)


def tell_stop(run: Run, state: LoopState) -> None:
    """Report that the run ends because its model has forgotten too much."""
    best = _exported(run, state)
    _tell(run, state, stop_of(run, state), stage="stop", to_step=None if best is None else best.step)


def _tell(run: Run, state: LoopState, report: RemedyReport, **facts: Any) -> None:
    before, now = state.metrics_before[GENERAL_LOSS], state.metrics[GENERAL_LOSS]
    report.tell(run.reporter.event, step=state.step, general_loss_before=before, general_loss=now, **facts)
