"""A model directory out of a run that did not get to write its own: from its newest checkpoint."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from typing import Any

import torch

from jobs import storage
from jobs.errors import DataError, StorageError
from jobs.load import load_spec
from jobs.modeldir import local_model_dir
from jobs.outcome import read_outcome
from jobs.paths import JobPaths, checkpoint_step
from jobs.quiet import redirected_output
from jobs.spec import Spec
from jobs.training.engine import CHECKPOINT_TAG, import_deepspeed
from jobs.training.export import Weights, write_config, write_weights
from jobs.training.model import DTYPES, label_arguments, model_class


def export_run(run_root: str, to: str | None = None) -> str:
    """Bring a run's model to `to` or its own model/: a copy where it has one, else out of its newest checkpoint.

    One process reads the checkpoint, tensor by tensor; at most one output file is in memory.

    Returns:
        The directory's path or URL.

    Raises:
        DataError: the run has neither a model nor a checkpoint.
    """
    paths = JobPaths(run_root)
    target = paths.model if to is None else to
    outcome = read_outcome(paths)
    if outcome is not None and outcome.model_path is not None:  # written, read back and found right
        return paths.model if target == paths.model else _copied(paths.model, target)
    steps = [step for name in storage.list_names(paths.checkpoints) if (step := checkpoint_step(name)) is not None]
    if not steps:
        raise DataError(f"run {paths.name} has neither a model nor a checkpoint: there is nothing to export")
    with redirected_output(paths.log("export")), tempfile.TemporaryDirectory(prefix="fleetune-export-") as scratch:
        folder = paths.checkpoint(max(steps))
        if not storage.is_local(folder):
            storage.fetch_dir(folder, scratch)
            folder = scratch
        _write(load_spec(paths.spec), _precision(paths), storage.local_path(folder), target)
    return target


def _copied(source: str, target: str) -> str:
    with tempfile.TemporaryDirectory(prefix="fleetune-export-") as scratch:
        storage.fetch_dir(source, scratch)
        for name in storage.list_names(scratch):
            storage.put_file(storage.join(scratch, name), storage.join(target, name))
    return target


def _precision(paths: JobPaths) -> Any:
    """What the run computed in, and so what its model is written in; fp32 where the manifest does not say."""
    try:
        return json.loads(storage.read_bytes(paths.manifest)).get("precision", "fp32")
    except StorageError:
        return "fp32"


def _write(spec: Spec, precision: Any, checkpoint: str, target: str) -> None:
    import_deepspeed(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    from transformers import AutoConfig

    model_dir, dtype = local_model_dir(spec.model.path), DTYPES[precision]
    config = AutoConfig.from_pretrained(model_dir, trust_remote_code=False, **label_arguments(spec))
    with torch.device("meta"):
        model = model_class(spec).from_config(config, dtype=dtype)
    lazy = get_fp32_state_dict_from_zero_checkpoint(checkpoint, tag=CHECKPOINT_TAG, lazy_mode=True)
    weights = Weights(model)
    missing = [name for name, _ in weights.sizes if name not in lazy]
    if missing:
        raise DataError(f"the checkpoint {checkpoint} lacks {', '.join(missing[:5])}: it is of another model")

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in [*weights.parameters, *weights.buffers]:
            yield name, lazy[name].contiguous().to(tensor.dtype)

    write_weights(target, weights.sizes, tensors())
    write_config(target, model, model_dir, dtype)
