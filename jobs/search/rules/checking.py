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
    """Check a sweep, and return it with its prior and the source of the prior's learning rate (see `with_prior`).

    Raises:
        SpecError: all mistakes in space and budget, one a line; or a mistake in the prior.
    """
    check_sweep(sweep)
    found, source = with_prior(sweep)
    check_space(found)  # again, because the default space depends on the prior
    return found, source
