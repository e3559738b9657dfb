"""Concludes a search: its outcome or error, warnings about its trials, and the model of its best trial."""

from __future__ import annotations

import datetime
import math
from collections import Counter
from collections.abc import Sequence

from cluster.errors import Diverged, FleetuneError, MachinesFailed, RunFailed
from cluster.text import many
from jobs.run.attempts import take_run
from jobs.run.metric_names import is_worse
from jobs.run.outcome import Outcome, Status, read_outcome, write_outcome
from jobs.run.paths import JobPaths
from jobs.run.record import resume_command
from jobs.search.driver.carrying_out import carried_out_unless_stopped
from jobs.search.driver.searching import Search
from jobs.search.driver.warm_gang import GangLost
from jobs.search.ledger import Ledger
from jobs.search.report.trial_text import format_trial
from jobs.search.rules.budget import is_hopeless
from jobs.search.rules.untried import untried
from jobs.search.spending import kind_within
from jobs.search.trial import Trial
from jobs.search.trials import Trials
from jobs.spec.load import dump_spec
from jobs.storage import files as storage
from jobs.training.mailbox import GangTask

_MOST_NAMED = 5  # trials in a warning


def concluded_sweep(search: Search) -> Outcome:
    """Return the outcome of a search that has ended. Export the model of its best trial if the sweep says so.

    Raises:
        RunFailed: every trial failed, or the export did.
        Diverged: every trial diverged.
        MachinesFailed: gangs were lost, so that no trial was trained to its end, or the model is not exported.
    """
    ledger = search.ledger
    if search.asked_to_stop():
        done = sum(trial.is_over for trial in ledger.trials.values())
        return _interrupted(
            f"stopped on request after {done} of {many(len(ledger.trials), 'trial')}; checkpoints are kept"
        )
    ledger.search_has_ended()
    for warning in warnings_of(ledger, search.paths):
        search.announce("warning", warning)
    best = ledger.best
    if best is None:
        if (log := search.gangs.log_of(_usual_end(ledger)[0])) is not None:
            search.announce("log", f"the end of {log[0]}:\n{log[1]}")
        raise failure_of(ledger)
    storage.write_bytes(search.paths.best, dump_spec(best.spec))
    before = read_outcome(best.paths)
    model = before.model_path if before is not None else None
    if ledger.sweep.then == "export" and model is None:
        if not _exported(search, best):
            reason = f"stopped on request while the model of trial {best.number} was exported: a resume exports it"
            search.announce("stopping", reason)
            return _interrupted(reason)
        model = best.paths.model
        if before is not None:
            write_outcome(best.paths, before.model_copy(update={"model_path": model}))
    return Outcome(
        status=Status.SUCCEEDED,
        step=best.step,
        metrics=best.metrics,
        evaluated_step=best.scored_step,
        model_path=model,
        ended_at=datetime.datetime.now(datetime.UTC),
    )


def _interrupted(reason: str) -> Outcome:
    return Outcome(status=Status.INTERRUPTED, reason=reason, ended_at=datetime.datetime.now(datetime.UTC))


def _exported(search: Search, best: Trial) -> bool:
    """Have a gang export the model of the best trial. Returns False if a request to stop came first.

    Raises:
        RunFailed: the export failed.
        MachinesFailed: the gangs were lost.
    """
    search.announce("phase", f"exporting the model of trial {best.number}", phase="export")
    holder = best.driver or take_run(best.paths)  # an earlier driver trained it, and its workers may still live
    task = GangTask(action="export", run=best.paths.root, spec=best.spec, driver=holder)
    try:
        answer = carried_out_unless_stopped(search.gangs, task, search.asked_to_stop)
    except GangLost as error:
        raise MachinesFailed(f"the model of trial {best.number} could not be exported: {error}") from error
    if answer is not None and answer.status != "exported":
        raise RunFailed(f"the model of trial {best.number} could not be exported: {answer.reason}")
    return answer is not None


def warnings_of(trials: Trials, sweep: JobPaths) -> list[str]:
    """Return warnings about a search that has ended. Pure."""
    found, best = [], trials.best
    if left := trials.repeats_to_begin:
        said = f"the budget has no time for {many(left, 'repeat')} of the best trials with other seeds"
        found.append(f"{said}. To extend the budget: fleetune sweep extend")
    if best is not None:
        if lost := [trial for trial in trials.trials.values() if trial.lost]:
            found.append(not_tried(lost, sweep))
        found += filter(None, [worse_than_base(trials, best)])
    return found


def failure_of(ledger: Ledger) -> FleetuneError:
    """Return the error of a search in which no trial was trained to its end. Pure."""
    (reason, count), trials = _usual_end(ledger), ledger.trials.values()
    said = f"no trial was trained to its end; {count} of {len(trials)} ended so: {reason}"
    if trials and all(trial.diverged for trial in trials):
        return Diverged(f"{said}. All trials diverged: search other values, usually lower learning rates")
    if any(trial.lost for trial in trials):  # the next driver tries them again
        return MachinesFailed(said)
    if any(trial.metric_failed for trial in trials):  # likewise
        return RunFailed(f"{said}. A resume tries the trials again whose metric failed")
    is_final = kind_within(ledger, ledger.plan, ledger.spent) == "done"
    return RunFailed(f"{said}. {what_is_left(ledger)}" if is_final else said, is_final=is_final)


def _usual_end(trials: Trials) -> tuple[str, int]:
    """Return the reason with which most trials have ended, and their number."""
    ended = (trial for trial in trials.trials.values() if trial.state in ("failed", "stopped"))
    reasons = Counter(trial.reason for trial in ended if trial.reason)
    return reasons.most_common(1)[0] if reasons else ("no trial was finished", 0)


def what_is_left(ledger: Ledger) -> str:
    """Return what to do after a search without a finished trial, which a resume would not continue."""
    begun, most = [trial for trial in ledger.searched if not trial.without_rungs], ledger.plan.compared
    if not is_hopeless(ledger.searched, ledger.plan) or len(begun) >= most:
        if untried(ledger.sweep, ledger.searched, None, ledger.total_steps) == []:
            return "A resume would begin no trial: start a new sweep"
        extend = f"extend the budget (fleetune sweep extend {ledger.root})"
        return f"A resume would begin no trial: {extend}, or start a new sweep"
    left = "" if math.isinf(most) else f"; {int(most) - len(begun)} of {int(most)} trials were not tried"
    return f"The search gave up after {len(begun)} failures{left}. Start a new sweep with other values"


def not_tried(lost: Sequence[Trial], sweep: JobPaths) -> str:
    """Return a warning that these values were not tried to the end, and how to try them again."""
    named = ", ".join(map(format_trial, lost[:_MOST_NAMED]))
    more = f" and {len(lost) - _MOST_NAMED} more" if len(lost) > _MOST_NAMED else ""
    return f"not tried to the end, because gangs were lost: {named}{more}. To try them again: {resume_command(sweep)}"


def worse_than_base(trials: Trials, best: Trial) -> str | None:
    """Return a warning if the best trial is worse than the model before training; None if not, or if not known."""
    before, after, name = trials.base_score, best.score, trials.sweep.judged
    greater_is_better = not trials.sweep.lower_is_better
    if before is None or after is None or not is_worse(after, before, greater_is_better=greater_is_better):
        return None
    return (
        f"{name} of the best trial is worse than before training: {after:.6g} after {before:.6g}. Search lower "
        "learning rates (space.learning_rate), or check that the held-out samples are like the training samples"
    )
