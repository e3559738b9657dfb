"""The steps of every driver before workers start: check the model's files, prepare the data, check the plan."""

from __future__ import annotations

import importlib.util
import os
from typing import Literal

from cluster.errors import DataError, SpecError
from jobs.console import redirected_output
from jobs.data.order.stream import step_plan
from jobs.data.preparation.prepare import prepare
from jobs.data.prepared import Prepared
from jobs.model_files.directory import check_model_files, vocabulary_of
from jobs.model_files.without_weights import without_weights
from jobs.preflight.cache import remember_tried, was_tried
from jobs.preflight.run_plan import Announce
from jobs.run.outcome import event
from jobs.run.progress import Progress
from jobs.spec.finetune import Spec

# Bytes up to which data is prepared in this process. Ray tasks take as long to start.
LITTLE_BYTES = 8 * 2**20


def ready_data(spec: Spec, engine: Literal["plain", "ray"], announce: Announce) -> Prepared:
    """Return prepared data on which the job can be trained.

    Raises:
        InputError: the model's files or the data do not fit the spec, or the warmup is longer than the run.
    """
    announce("phase", "preparing the data", phase="prepare")
    model_dir = check_model(spec)
    prepared = prepare(
        spec,
        model_dir,
        engine=engine,
        say=lambda text: announce("phase", text, phase="prepare"),
        warn=lambda text: announce("warning", text),
        plain_up_to=LITTLE_BYTES,
    )
    step_plan(spec, prepared.split("train"))
    _check_tokens(prepared, model_dir)
    return prepared


def try_model(spec: Spec, progress: Progress) -> None:
    """Check the model before a run or a search has a directory, and so a log: what libraries print is dropped.

    Raises InputError, such as for LoRA targets that match no module.
    """
    progress.event(event("phase", f"trying the model with method: {spec.method.kind}", phase="prepare"))
    with redirected_output(os.devnull):
        check_model(spec)


def check_model(spec: Spec) -> str:
    """Check the model's files, and run it once without weights, unless that succeeded before.

    Returns its directory on this machine. Raises InputError.
    """
    model_dir = without_weights(spec.model.path)
    check_model_files(model_dir, spec)
    if spec.method.kind != "full" and importlib.util.find_spec("peft") is None:
        raise SpecError.at("method", f"{spec.method.kind} needs peft, which is not installed here: pip install peft")
    if not was_tried(spec, model_dir):
        from jobs.preflight.dry_run import check_model_runs  # imports torch, which takes seconds

        check_model_runs(spec, model_dir)
        remember_tried(spec, model_dir)
    return model_dir


def _check_tokens(prepared: Prepared, model_dir: str) -> None:
    """Raise DataError if the data has a token that the model does not have."""
    parts = [part for parts in prepared.manifest.splits.values() for part in parts]
    largest, vocabulary = max(part.largest_token or 0 for part in parts), vocabulary_of(model_dir)
    if vocabulary is not None and largest >= vocabulary:
        raise DataError(
            f"model.path {model_dir}: the tokenizer makes token {largest} of this data, but the model has {vocabulary} "
            "tokens (vocab_size in config.json). Use the tokenizer that was released with the model, or enlarge the "
            f"model with model.resize_token_embeddings({largest + 1}) and save it"
        )
