"""The steps of every driver before workers start: check the model's files, prepare the data, check the plan."""

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

# Bytes up to which data is prepared in this process. Tasks on Ray take seconds to start, in which one process is done.
LITTLE_BYTES = 8 * 2**20


def ready_data(spec: Spec, engine: Literal["plain", "ray"], announce: Announcer) -> Prepared:
    """Return prepared data on which the job can be trained.

    Raises:
        InputError: the model's files or the data do not fit the spec, or the warmup is longer than the run.
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
    """Run the model once without weights, unless that succeeded before. Raises DataError."""
    if was_tried(spec, model_dir):
        return
    from jobs.preflight.dry_run import check_model_runs  # imports torch, which takes seconds

    check_model_runs(spec, model_dir)
    remember(spec, model_dir)
