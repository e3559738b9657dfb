"""What every driver does before workers start: the model's files checked, the data prepared, the plan checked."""

from __future__ import annotations

from typing import Literal

from jobs.data.order.stream import step_plan
from jobs.data.preparation.prepare import prepare
from jobs.data.prepared import Prepared
from jobs.model_files.directory import check_model_files
from jobs.model_files.tried import remember, was_tried
from jobs.model_files.without_weights import without_weights
from jobs.run.events import Announcer
from jobs.spec.finetune import Spec

# Tasks on Ray take seconds to start; meanwhile one process tokenises about as much.
LITTLE_BYTES = 8 * 2**20


def ready_data(spec: Spec, engine: Literal["plain", "ray"], announce: Announcer) -> Prepared:
    """The prepared data of a job that can be trained on it.

    Raises:
        InputError: the model's files or the data are not what the spec says, or the warmup is longer than the run.
    """
    announce("phase", "preparing the data", phase="prepare")
    model_dir = without_weights(spec.model.path)
    check_model_files(model_dir, spec)
    _check_model_runs(spec, model_dir)
    prepared = prepare(
        spec,
        model_dir,
        engine=engine,
        say=lambda text: announce("phase", text, phase="prepare"),
        plain_up_to=LITTLE_BYTES,
    )
    step_plan(spec, prepared.split("train"))
    return prepared


def _check_model_runs(spec: Spec, model_dir: str) -> None:
    """Raises DataError."""
    if was_tried(spec, model_dir):
        return
    from jobs.preflight.dry_run import check_model_runs  # it imports torch, which takes the driver seconds

    check_model_runs(spec, model_dir)
    remember(spec, model_dir)
