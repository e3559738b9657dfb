"""Checks a sweep before anything is started. Light to import."""

from __future__ import annotations

from cluster.errors import Mistake
from jobs.errors import SpecError
from jobs.search.rules.budget import check_budget
from jobs.search.rules.prior import with_prior
from jobs.search.rules.varying import check_space
from jobs.spec.sweep import SweepSpec


def check_sweep(sweep: SweepSpec) -> None:
    """Check the space and the budget, without access to the sweep's storage. Raises SpecError with all mistakes."""
    problems = list[Mistake]()
    for check in (check_space, check_budget):
        try:
            check(sweep)
        except SpecError as error:
            problems += error.mistakes
    if problems:
        raise SpecError.of(problems)


def checked_sweep(sweep: SweepSpec) -> tuple[SweepSpec, str | None]:
    """The sweep with its prior, and where the prior's learning rate comes from (see `with_prior`).

    Raises:
        SpecError: with all mistakes in space, budget and prior, one a line.
    """
    check_sweep(sweep)
    found, source = with_prior(sweep)
    check_space(found)  # also the default space, which is laid around the prior
    return found, source
