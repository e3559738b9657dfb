"""Checks whether a sweep can be resumed with a spec, and completes that spec. Light to import."""

from __future__ import annotations

import time
from typing import Final

from jobs.errors import InputError, SpecError
from jobs.run.outcome import read_outcome
from jobs.run.paths import JobPaths
from jobs.run.resume import check_not_driven, differences
from jobs.search.rules.varying import field_meant
from jobs.spec.load import load_sweep
from jobs.spec.sweep import SweepSpec

_FIXED: Final = ("metric", "mode", "algorithm", "scheduler", "rungs", "cooldown", "prior", "seed")


def begun_like(sweep: SweepSpec, paths: JobPaths, *, by_hand: bool = True) -> SweepSpec:
    """Fill in space and prior from the earlier sweep where the given spec leaves them out.

    A later attempt of the queue uses the sweep's stored spec, which may have been changed while it ran.
    """
    before = load_sweep(paths.spec)
    if before is None or not by_hand:
        return before or sweep
    known = {field_meant(name): value for name, value in before.prior.items()}
    same = all(known.get(field_meant(name)) == value for name, value in sweep.prior.items())
    update = {"space": sweep.space or before.space, "prior": before.prior if same else sweep.prior}
    return sweep.model_copy(update=update)


def check_sweep_resumable(paths: JobPaths, now: SweepSpec, *, alone: bool = False) -> None:
    """Raise SpecError if the spec is of another search, or InputError if the sweep still has a driver.

    Args:
        alone: the caller knows that no driver has the sweep any more.
    """
    before = load_sweep(paths.spec)
    if before is None:
        raise InputError(f"{paths.root} is no sweep")
    if read_outcome(paths) is None and not alone:
        check_not_driven(paths, time.time())
    check_same_search(before, now)


def check_same_search(before: SweepSpec, now: SweepSpec) -> None:
    """Raise SpecError if trials of the two specs could not be compared."""
    changed = [f"base.{line}" for line in differences(before.base, now.base)]
    if before.algorithm == "grid" and before.space != now.space:
        changed.append("space: the trials of a grid are numbered by it")
    if strangers := set(before.dimensions) ^ set(now.dimensions):
        changed.append(f"space: not both have {', '.join(sorted(strangers))}")
    for name in before.dimensions.keys() & now.dimensions.keys():
        if isinstance(before.dimensions[name], tuple) != isinstance(now.dimensions[name], tuple):
            changed.append(f"space.{name}: a range stays a range, and a list a list")
    for name in _FIXED:
        if (old := getattr(before, name)) != (new := getattr(now, name)):
            changed.append(f"{name}: {old} -> {new}")
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise SpecError(
            "the sweep cannot be resumed with this spec, because its trials could not be compared (before -> now):\n"
            f"{lines}\nThe budget, seeds, num_gangs, then, checkpoints_gb and the ends of ranges may change. Take "
            "these back, or start a new sweep"
        )
