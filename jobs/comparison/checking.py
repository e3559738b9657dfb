"""Checks a comparison before anything is started, and makes the sweep of each method. Light to import."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cluster.errors import InputError, Mistake, SpecError
from jobs.preflight.validate import Validated, validate
from jobs.run.find import with_model_of_run
from jobs.search.rules.checking import checked_sweep
from jobs.search.rules.prior import rate_to_begin_with
from jobs.spec.compare import ComparedMethod, CompareSpec
from jobs.spec.sweep import SweepSpec


@dataclass(frozen=True)
class CheckedMethod:
    """The search of one method.

    Attributes:
        sweep: the search, with the method's prior, and with the default space if the spec gives none.
        prior_from: the source of the prior's learning rate in words; None: the spec gives it, or there is no prior.
        found: the result of the checks.
    """

    name: str
    sweep: SweepSpec
    prior_from: str | None
    found: Validated


def checked_methods(spec: CompareSpec) -> list[CheckedMethod]:
    """Validate the job and the search of each method. Raises InputError with the mistakes of all methods."""
    checked, problems = list[CheckedMethod](), list[InputError]()
    for method in spec.methods:
        try:
            with about_method(method.name):
                sweep, rate_from = _sweep_of(spec, method)
                found = validate(sweep.base, judged=sweep.judged)
                sweep, source = checked_sweep(sweep.model_copy(update={"base": found.spec}))
        except InputError as error:
            problems.append(error)
        else:
            checked.append(CheckedMethod(method.name, sweep, rate_from if source and rate_from else source, found))
    if problems:
        raise type(problems[0]).of(_once([one for error in problems for one in error.mistakes], len(spec.methods)))
    _check_equal_steps([one.sweep for one in checked])
    return checked


def sweeps_to_plan(spec: CompareSpec) -> dict[str, SweepSpec]:
    """Return the search of each method, with its prior, by the method's name.

    Raises:
        InputError: the search of a method is not possible.
    """
    found = {}
    for method in spec.methods:
        with about_method(method.name):
            found[method.name] = checked_sweep(_sweep_of(spec, method)[0])[0]
    _check_equal_steps(list(found.values()))
    return found


def _check_equal_steps(sweeps: Sequence[SweepSpec]) -> None:
    """Raise SpecError if the length is given in steps, and a step has more data with one method than with another."""
    if len({sweep.base.packed for sweep in sweeps}) < 2 or all(sweep.base.train.max_steps is None for sweep in sweeps):
        return
    raise SpecError.at(
        "base.train.max_steps",
        "a step of method: prompt has fewer samples than one of the other methods, because its rows are not packed: "
        "give num_train_epochs instead, or base.data.packing: false",
    )


def _sweep_of(spec: CompareSpec, method: ComparedMethod) -> tuple[SweepSpec, str | None]:
    """Return the search of a method, and the source of its learning rate in words; None: the spec gives the rate."""
    sweep = spec.sweep_of(method)
    job, source = with_model_of_run(sweep.base), None
    if "learning_rate" not in job.train.model_fields_set:  # also the middle of the default space
        rate, source = rate_to_begin_with(sweep.model_copy(update={"base": job}))
        job = job.model_copy(update={"train": job.train.model_copy(update={"learning_rate": rate})})
    return sweep.model_copy(update={"base": job}), source


def _once(mistakes: list[Mistake], methods: int) -> Iterator[Mistake]:
    """Yield each mistake. A mistake of all methods is yielded once, without the name of a method."""
    same = [replace(one, place="") for one in mistakes]
    for one, nameless in zip(mistakes, same, strict=True):
        if same.count(nameless) < methods:
            yield one
        elif nameless is next(other for other in same if other == nameless):
            yield nameless


@contextlib.contextmanager
def about_method(name: str) -> Iterator[None]:
    """Add the name of the method to an InputError."""
    try:
        yield
    except InputError as error:
        raise type(error).of(replace(one, place=one.place or f"method {name}") for one in error.mistakes) from error
