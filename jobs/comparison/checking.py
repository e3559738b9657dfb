"""Checks a comparison before anything is started, and makes the sweep of each method. Light to import."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cluster.errors import Mistake
from jobs.errors import InputError, SpecError
from jobs.preflight.validate import Validated, validate
from jobs.run.find import with_model_of_run
from jobs.search.rules.checking import checked_sweep
from jobs.search.rules.prior import rate_to_begin_with
from jobs.spec.compare import ComparedMethod, CompareSpec
from jobs.spec.finetune import Spec
from jobs.spec.sweep import SweepSpec


@dataclass(frozen=True)
class CheckedMethod:
    """The search of one method.

    Attributes:
        sweep: with the prior of this method, and the default space if the spec gives none.
        prior_from: where the prior's learning rate comes from; None: it is given, or there is none.
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
                found = validate(sweep.base)
                sweep, source = checked_sweep(sweep.model_copy(update={"base": found.spec}))
        except InputError as error:
            problems.append(error)
        else:
            checked.append(CheckedMethod(method.name, sweep, rate_from if source and rate_from else source, found))
    if problems:
        raise type(problems[0]).of(_once([one for error in problems for one in error.mistakes], len(spec.methods)))
    return checked


def sweeps_to_plan(spec: CompareSpec) -> dict[str, SweepSpec]:
    """Return the search of each method that a plan knows, with its prior, by its name.

    Raises:
        InputError: the search of a method is unsuitable, or all methods tune prompts.
    """
    found = {}
    for method in spec.methods:
        if method.method.kind != "prompt":
            with about_method(method.name):
                found[method.name] = checked_sweep(_sweep_of(spec, method)[0])[0]
    if not found:
        raise SpecError.at("methods", "a plan does not know prompt tuning yet, and there is no other method")
    return found


def _sweep_of(spec: CompareSpec, method: ComparedMethod) -> tuple[SweepSpec, str | None]:
    """Return the search of a method, and where its learning rate comes from; None: it is given."""
    sweep = spec.sweep_of(method)
    job, source = _with_rate(with_model_of_run(sweep.base))
    return sweep.model_copy(update={"base": job}), source


def _with_rate(base: Spec) -> tuple[Spec, str | None]:
    """Give the job a learning rate for its method if the spec has none. Also return the source of that rate.

    Without a space, every search is laid around this rate.
    """
    if "learning_rate" in base.train.model_fields_set:
        return base, None
    rate, source = rate_to_begin_with(base)
    return base.model_copy(update={"train": base.train.model_copy(update={"learning_rate": rate})}), source


def _once(mistakes: list[Mistake], methods: int) -> Iterator[Mistake]:
    """Yield each mistake; one that all methods have is yielded once, without the name of a method."""
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
