"""The probe at the start of a search: which learning rate is too high for a single step."""

from __future__ import annotations

from cluster.errors import DataError
from jobs.run.attempts import take_run
from jobs.run.events import Announcer
from jobs.run.paths import JobPaths
from jobs.search.driver.gangs import Gangs
from jobs.search.driver.warm_gang import GangLost
from jobs.search.ledger import Ledger
from jobs.search.rules.auto import greatest_rate, prior_of, probed_rates
from jobs.search.rules.varying import trial_spec
from jobs.training.mailbox import Answer, GangTask


def bound_rate(ledger: Ledger, gangs: Gangs, own: str, announce: Announcer) -> None:
    """Have a gang measure the loss after one step at several learning rates, and limit the rate by the result.

    Args:
        own: directory of this driver.

    Raises:
        DataError: a user's metric fails.
        FleetuneError: no gang could be started.
    """
    rates = () if ledger.is_bounded else probed_rates(ledger.sweep)
    if not rates:
        return
    announce("phase", f"looking for the greatest learning rate, up to {rates[-1]:.2g}", phase="probe")
    probe = JobPaths(JobPaths(own).probe)
    spec = trial_spec(ledger.sweep.base, prior_of(ledger.sweep))  # the first trial's: the gang has its engine then
    task = GangTask(action="probe", run=probe.root, spec=spec, rates=rates, driver=take_run(probe))
    try:
        answer = gangs.carry_out(task)
    except GangLost as error:
        announce("warning", f"{error}: the greatest learning rate is not looked for")
        return
    check_first_metrics(answer)
    greatest = greatest_rate(rates, answer.losses) if answer.status == "probed" else None
    ledger.set_bound(greatest, answer.tokens)
    if greatest is not None:
        said = f"one step at {greatest:.2g} makes the loss worse: higher learning rates are not tried"
        announce("phase", said, phase="probe")


def check_first_metrics(answer: Answer) -> None:
    """Raise DataError if a user's metric failed before the first step, where all trials have the same weights."""
    if answer.metric_failed == "before":
        raise DataError(f"{answer.reason}. It fails before the first step")
