"""Makes a model directory from the newest checkpoint of a run that did not write one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Set
from typing import cast

import torch

from jobs.console import redirected_output
from jobs.errors import DataError
from jobs.model_files.directory import local_model_dir, tensor_names
from jobs.model_files.tokenizer import load_tokenizer, pad_token_id
from jobs.planning.precision import Precision
from jobs.run.checkpoints import Commit, Part, Read, Slice, committed_steps, read_commit, read_parts, read_slices
from jobs.run.outcome import read_outcome
from jobs.run.paths import JobPaths
from jobs.spec.finetune import Spec
from jobs.spec.load import load_spec
from jobs.storage import files as storage
from jobs.storage.tensor_file import Damaged, as_bytes
from jobs.training.checkpoint.reader import check_same_model, read_buffers
from jobs.training.model.export import Weights, write_config, write_weights
from jobs.training.model.load import DTYPES, empty_model, load_model, set_pad_token
from jobs.training.model.tensor_names import naming_of


def export_run(run_root: str, to: str | None = None, say: Callable[[str], None] = print) -> str:
    """Put a run's model into `to`, or into its model/: a copy of its export, else made from its newest checkpoint.

    One process reads the checkpoint, tensor by tensor; at most one output file is in memory.

    Returns:
        The directory's path or URL.

    Raises:
        DataError: the run has neither a model nor a checkpoint.
    """
    paths = JobPaths(run_root)
    target = paths.model if to is None else to
    outcome = read_outcome(paths)
    if outcome is not None and outcome.model_path is not None:  # the run has verified this export
        return paths.model if target == paths.model else _copied(paths.model, target)
    for step in reversed(committed_steps(paths)):
        try:
            commit = read_commit(paths, step)
            with redirected_output(paths.log("export")):
                _write(load_spec(paths.spec), paths.checkpoint(step), commit, read_parts(paths, commit), target)
        except Damaged as error:
            say(f"the checkpoint of step {step} is damaged and passed over: {error}")
        else:
            say(f"out of the checkpoint of step {step}")
            return target
    raise DataError(f"run {paths.name} has neither a model nor a complete checkpoint: there is nothing to export")


def _copied(source: str, target: str) -> str:
    with tempfile.TemporaryDirectory(prefix="fleetune-export-") as scratch:
        storage.fetch_dir(source, scratch)
        for name in storage.list_names(scratch):
            storage.put_file(storage.join(scratch, name), storage.join(target, name))
    return target


def _write(spec: Spec, folder: str, commit: Commit, parts: tuple[Part, ...], target: str) -> None:
    model_dir, dtype = local_model_dir(spec.model.path), DTYPES[cast(Precision, commit.precision)]
    model = empty_model(spec, model_dir, dtype)
    set_pad_token(model.config, pad_token_id(load_tokenizer(model_dir)))
    weights = Weights(model)
    parameters = dict(weights.parameters)
    trained = {  # after loading, some types no longer freeze what their configuration freezes
        name: tuple(parameter.shape)
        for name, parameter in parameters.items()
        if parameter.requires_grad or name in commit.shapes
    }
    check_same_model(commit, trained)
    kept = read_buffers(folder, parts[0], dict(weights.buffers))
    if frozen := parameters.keys() - trained.keys():
        kept |= _frozen_parameters(spec, model_dir, cast(Precision, commit.precision), frozen)
    naming = naming_of(model, weights.empty, tensor_names(model_dir))

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name in naming.order:
            if name in kept:
                yield name, kept[name]
            else:
                yield name, _read_parameter(folder, parts, name, parameters[name]).to(parameters[name].dtype)

    write_weights(target, naming.sizes, naming.converted(tensors()))
    write_config(target, model, model_dir, dtype)


def _frozen_parameters(spec: Spec, model_dir: str, precision: Precision, names: Set[str]) -> dict[str, torch.Tensor]:
    """Load parameters that are not trained, and so are in no checkpoint, from the source's model."""
    source = load_model(spec, model_dir, precision, pad_token_id(load_tokenizer(model_dir)))
    return {name: parameter.detach() for name, parameter in source.named_parameters() if name in names}


def _read_parameter(folder: str, parts: tuple[Part, ...], name: str, like: torch.Tensor) -> torch.Tensor:
    """Read one parameter's fp32 weights from all ranks' slices, shaped as `like`. Raises Damaged."""
    tensor = torch.empty(like.numel(), dtype=torch.float32)
    read_slices(folder, parts, [Read("weight", Slice(name, 0, like.numel()), as_bytes(tensor.numpy()))])
    return tensor.reshape(like.shape)
