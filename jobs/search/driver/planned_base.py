"""Plans the gangs of a sweep once, before they start, and so chooses the fields that the base leaves out."""

from __future__ import annotations

from typing import Any

from jobs.data.prepared import Prepared
from jobs.errors import OutOfMemory
from jobs.planning.memory import COPIED_BY_TRIALS
from jobs.preflight.run_plan import Announce, FindPlaces, kept_choice, with_fields, with_planned_fields
from jobs.run.paths import JobPaths
from jobs.search.rules.varying import engines, trial_spec
from jobs.spec.finetune import PLANNED, Spec
from jobs.spec.sweep import SweepSpec


def planned_base(
    sweep: SweepSpec, prepared: Prepared, find_places: FindPlaces, paths: JobPaths, announce: Announce
) -> Spec:
    """Plan a gang, and return the base with the fields of `train` that the plan chose. Later drivers keep the choice.

    If trials have different engines, nothing is chosen: each engine must fit with the values of the spec.

    Raises:
        OutOfMemory: the trials, or those with one of the engines, cannot fit.
    """
    base, each = sweep.base, engines(sweep)
    # A trial is not changed after it ran out of memory, so the plan may not change values of the spec either.
    fixed = base.model_copy(update={"remedies": base.remedies.model_copy(update={"out_of_memory": False})})

    def tell(kind: str, message: str, **data: Any) -> None:
        data.pop("remaining_s", None)  # of one trial
        announce(kind, message, **data)

    if each == [{}]:
        kept = kept_choice(fixed, paths)
        spec = with_fields(fixed, kept)
        planned = with_planned_fields(spec, kept, prepared, find_places, paths, tell, copied_bytes=COPIED_BY_TRIALS)
        return base.model_copy(update={"train": planned.train})
    places = find_places()
    for engine in each:
        spec = trial_spec(fixed, engine)
        written = spec.train.model_copy(update={name: getattr(spec.train, name) for name in PLANNED})
        try:
            spec = spec.model_copy(update={"train": written})
            with_planned_fields(spec, {}, prepared, lambda: places, paths, tell, copied_bytes=COPIED_BY_TRIALS)
        except OutOfMemory as error:
            said = ", ".join(f"{name} {value}" for name, value in engine.items())
            raise OutOfMemory(f"trials with {said}: {error}") from error
    return base
