"""Makes a model directory from the newest checkpoint of a run that did not write one, or merges its adapter."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Set
from typing import Any, cast

import torch

from cluster.errors import DataError, InputError, StorageError
from jobs.console import redirected_output
from jobs.model_files.directory import local_model_dir, tensor_names
from jobs.model_files.tokenizer import load_tokenizer, pad_token_id
from jobs.planning.precision import Precision
from jobs.run.checkpoints import Commit, Part, Read, Slice, committed_steps, read_commit, read_parts, read_slices
from jobs.run.find import export_source, read_spec_json
from jobs.run.outcome import read_outcome
from jobs.run.paths import JobPaths, made_from
from jobs.spec.checking.fields import SEARCHES
from jobs.spec.finetune import Spec
from jobs.spec.load import load_spec
from jobs.storage import files as storage
from jobs.storage.tensor_file import Damaged, as_bytes
from jobs.training.checkpoint.reader import check_same_model, read_buffers
from jobs.training.checkpoint.unfinished_export import WRITER, unfinished
from jobs.training.model.adapters import (
    adapted,
    base_of,
    own_copies,
    precision_of_adapter,
    with_adapter_of,
    write_adapter,
)
from jobs.training.model.batch import Batch, model_logits
from jobs.training.model.export import Weights, check_same_logits, on_this_node, write_config, write_weights
from jobs.training.model.load import (
    DTYPES,
    empty_model,
    in_one_dtype,
    load_base,
    set_pad_token,
    without_flash_attention,
)
from jobs.training.model.tensor_names import naming_of

_CONFIG = "config.json"
_ADAPTER_CONFIG = "adapter_config.json"
_COMPARED_TOKENS = 32  # of one row, on which a merged model must agree with the base and its adapter


def export_run(run_root: str, to: str | None = None, say: Callable[[str], None] = print) -> str:
    """Put a run's model into `to`, or into its model/: a copy of its export, else made from its newest checkpoint.

    If the run had exported its best checkpoint and the export is gone, that checkpoint is taken. One process reads the
    checkpoint, tensor by tensor; at most one output file is in memory.

    In model/, the new model takes the place of an earlier one only when it is whole.

    Returns:
        The directory's path or URL.

    Raises:
        InputError: the run is a search, or another export of it is being written.
        DataError: the run has neither a model nor a checkpoint, or `to` may not be overwritten.
    """
    paths = JobPaths(run_root)
    _refuse_searches(paths)
    target = paths.model if to is None or _place(to) == _place(paths.model) else to
    check_target(target, paths, own=paths.model)
    if has_own_export(paths):
        return paths.model if target == paths.model else _copied(paths.model, target)
    with _exported(paths, target) as folder:
        _write_newest(paths, folder, say)
    return target


def has_own_export(paths: JobPaths) -> bool:
    """Whether model/ holds the model that the run itself has exported and verified. It may have been removed since.

    Raises:
        StorageError: the run cannot be read.
    """
    outcome = read_outcome(paths)
    if outcome is None or outcome.model_path is None:
        return False
    return any(storage.exists(storage.join(paths.model, name)) for name in (_CONFIG, _ADAPTER_CONFIG))


def _write_newest(paths: JobPaths, target: str, say: Callable[[str], None]) -> None:
    """Write the model of the newest checkpoint that is not damaged; but rather of that which the run had exported.

    Raises:
        DataError: there is no such checkpoint.
    """
    outcome, tried = read_outcome(paths), set[int]()
    exported = None if outcome is None else outcome.exported_step  # the best one
    while left := [step for step in committed_steps(paths) if step not in tried]:
        step = max(left, key=lambda step: (step == exported, step))
        tried.add(step)
        try:
            commit = read_commit(paths, step)
            with _logged(paths):
                _write(load_spec(paths.spec), paths.checkpoint(step), commit, read_parts(paths, commit), target)
        except Damaged as error:
            if step in committed_steps(paths):
                say(f"the checkpoint of step {step} is damaged and passed over: {error}")
            else:
                say(f"the run has removed the checkpoint of step {step} in the meantime: a newer one is taken")
        else:
            return say(f"out of the checkpoint of step {step}")
    raise DataError(f"run {paths.name} has neither a model nor a complete checkpoint: there is nothing to export")


def merge_run(run_root: str, to: str | None = None, say: Callable[[str], None] = print) -> str:
    """Merge the adapter of a run into its base model and write the whole model to `to`, or into the run's merged/.

    The model that was written is read back, and its logits are compared. Until then it has no config.json, so that
    nothing takes it for a model; its files are removed after an error, and an earlier model in merged/ stays. One
    process holds one whole model at a time.

    Returns:
        The directory's path or URL.

    Raises:
        InputError: the run has no adapter that can be merged, or another merge of it is being written.
        DataError: the run has neither an adapter nor a checkpoint, or `to` may not be overwritten.
        RunFailed: the merged model computes other logits than the base with its adapter.
    """
    paths = JobPaths(run_root)
    _refuse_searches(paths)
    spec, target = load_spec(paths.spec), paths.merged if to is None or _place(to) == _place(paths.merged) else to
    if spec.method.kind != "lora":
        why = "is a whole model already" if spec.method.kind == "full" else "is a prompt, which is no change of weights"
        raise InputError(f"run {paths.name} was trained with method: {spec.method.kind}; its export {why}")
    check_target(target, paths, own=paths.merged)
    with _exported(paths, target) as folder, tempfile.TemporaryDirectory(prefix="fleetune-merge-") as scratch:
        export_run(run_root, scratch, say)
        with _logged(paths):
            _merge(without_flash_attention(spec), scratch, folder)
    return target


@contextlib.contextmanager
def _logged(paths: JobPaths) -> Iterator[None]:
    """Write what libraries print to the run's log, or to a temporary file if the run's logs cannot be written."""
    log = paths.log("export")
    with contextlib.ExitStack() as stack:
        if storage.is_local(log) and not os.access(os.path.dirname(storage.local_path(log)), os.W_OK):
            log = os.path.join(stack.enter_context(tempfile.TemporaryDirectory(prefix="fleetune-log-")), "export")
        stack.enter_context(redirected_output(log))
        yield


def _base_dir(spec: Spec) -> str:
    """Return the local directory of the model that the run started from. Raises DataError: it is gone."""
    found = local_model_dir(spec.model.path)
    if not os.path.isdir(found):
        raise DataError(f"model.path {spec.model.path}: the model that the run started from is gone. Put it back")
    return found


def _refuse_searches(paths: JobPaths) -> None:
    """Raise InputError for a sweep or a comparison, whose models are in the runs of their trials."""
    kind = read_spec_json(paths).get("kind")
    if kind not in SEARCHES:
        return
    outcome = read_outcome(paths)
    model = None if outcome is None else outcome.model_path
    has = "" if model is None else f" Its best model is in {model}."
    raise InputError(f"run {paths.name} is a {kind}, which has no model of its own.{has} Export one of its trials")


def check_target(to: str, paths: JobPaths, own: str | None = None) -> None:
    """Raise DataError if `to` holds a model or an adapter, such as the run's base, or is a directory of the run.

    Args:
        own: the run's directory for this kind of export; a model in it is replaced.
    """
    if to == own:
        return
    if _place(to) in (_place(paths.model), _place(paths.merged)):
        raise DataError(f"{to} is the run's own directory for another export: give --to another directory")
    for name, what in ((_CONFIG, "a model"), (_ADAPTER_CONFIG, "an adapter")):
        if storage.exists(storage.join(to, name)):
            raise DataError(f"{to} holds {what} already ({name}), which stays as it is: give --to another directory")


@contextlib.contextmanager
def _exported(paths: JobPaths, target: str) -> Iterator[str]:
    """Provide the directory to write an export into. If that fails, `target` keeps what it had before.

    An export into a directory of the run is written beside it, and takes the place of an earlier one when it is whole.
    It gets a mark that tells from which checkpoint it is made, because the run may continue later.
    """
    if target not in (paths.model, paths.merged):
        with removed_on_failure(target):
            yield target
        return
    source = export_source(paths)
    with unfinished(target) as new:
        yield new
        if target == paths.merged or not has_own_export(paths):  # the run may have ended in the meantime
            if source is not None:
                storage.write_bytes(made_from(new), source.encode())
            _replace(target, new)


def _replace(target: str, new: str) -> None:
    """Move the files of an export to the place of an earlier one.

    The configuration is removed first and moved last: a directory without one is not taken for a model.
    """
    configs = (_CONFIG, _ADAPTER_CONFIG)
    weights = [name for name in storage.list_names(target) if ".safetensors" in name]
    for name in (*configs, *weights):
        storage.remove_file(storage.join(target, name))
    written = [name for name in storage.list_names(new) if name != WRITER]
    for name in sorted(written, key=lambda name: name in configs):
        if storage.is_dir(storage.join(new, name)):  # further chat templates
            for inner in storage.list_names(storage.join(new, name)):
                storage.move_file(storage.join(new, name, inner), storage.join(target, name, inner))
        else:
            storage.move_file(storage.join(new, name), storage.join(target, name))


def _place(path: str) -> str:
    return os.path.realpath(storage.local_path(path)) if storage.is_local(path) else path.rstrip("/")


@torch.no_grad()
def _merge(spec: Spec, adapter: str, target: str) -> None:
    base_dir, precision = _base_dir(spec), precision_of_adapter(adapter)
    pad = pad_token_id(load_tokenizer(base_dir))
    with tempfile.TemporaryDirectory(prefix="fleetune-merge-") as beside:
        expected = write_merged(spec, base_dir, adapter, precision, pad, target, beside)
        with on_this_node(target, lambda: None) as local:
            links = [name for name in os.listdir(local) if ".safetensors" in name]
            for name in links:
                os.symlink(os.path.abspath(os.path.join(local, name)), os.path.join(beside, name))
            merged = in_one_dtype(load_base(spec, beside, precision, pad)[0], precision)
            check_same_logits(expected, _logits(merged, spec), DTYPES[precision])
        for name in links:
            os.unlink(os.path.join(beside, name))
        storage.put_dir(beside, target, last=_CONFIG)


@contextlib.contextmanager
def removed_on_failure(target: str) -> Iterator[None]:
    """Remove the files that an export has added to a directory if an error leaves the context."""
    before = storage.list_names(target)
    try:
        yield
    except BaseException:
        with contextlib.suppress(StorageError):
            for name in set(storage.list_names(target)) - set(before):
                added = storage.join(target, name)
                (storage.remove_dir if storage.is_dir(added) else storage.remove_file)(added)
        raise


def write_merged(
    spec: Spec, base_dir: str, adapter: str, precision: Precision, pad: int, target: str, beside: str
) -> list[torch.Tensor]:
    """Write the merged weights to `target` and the other files of the model to the local directory `beside`.

    Returns:
        Logits of the base with its adapter, with which the merged model is compared. The models are freed.
    """
    base = in_one_dtype(load_base(spec, base_dir, precision, pad)[0], precision)
    adapted_model = with_adapter_of(base, adapter, in_fp32=True)
    expected, model = _logits(base_of(adapted_model)[0], spec), adapted_model.merge_and_unload()
    weights = Weights(model)
    tensors = dict([*weights.parameters, *weights.buffers])
    naming = naming_of(model, weights.empty, tensor_names(base_dir))
    write_weights(target, naming.sizes, naming.converted((name, tensors[name]) for name in naming.order))
    write_config(beside, model, base_dir, DTYPES[precision], spec.model.chat_template)
    return expected


def _logits(model: Any, spec: Spec) -> list[torch.Tensor]:
    places = torch.arange(min(_COMPARED_TOKENS, spec.data.seq_len))  # the model may have no positions for more
    row = (places[None] + 2) % model.get_input_embeddings().num_embeddings
    batch = Batch({"input_ids": row, "attention_mask": torch.ones_like(row)}, row, places)
    return [model_logits(model.eval(), batch, spec.model.task)]


def _copied(source: str, target: str) -> str:
    with tempfile.TemporaryDirectory(prefix="fleetune-export-") as scratch:
        storage.fetch_dir(source, scratch)
        config = _CONFIG if os.path.exists(os.path.join(scratch, _CONFIG)) else _ADAPTER_CONFIG
        with removed_on_failure(target):
            storage.put_dir(scratch, target, last=config)
    return target


def _write(spec: Spec, folder: str, commit: Commit, parts: tuple[Part, ...], target: str) -> None:
    model_dir, dtype = _base_dir(spec), DTYPES[cast(Precision, commit.precision)]
    model = empty_model(spec, model_dir, dtype)
    if spec.method.kind != "full":
        model = adapted(spec, model, model_dir, own_copies(commit.shapes))
        _write_adapter(model, folder, commit, parts, target, spec.model.chat_template)
        return
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
                yield name, _read_parameter(folder, parts, name, parameters[name])

    write_weights(target, naming.sizes, naming.converted(tensors()))
    write_config(target, model, model_dir, dtype, spec.model.chat_template)


def _write_adapter(
    model: Any, folder: str, commit: Commit, parts: tuple[Part, ...], target: str, chat_template: str | None
) -> None:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    check_same_model(commit, {name: tuple(parameter.shape) for name, parameter in trained.items()})
    tensors = ((name, _read_parameter(folder, parts, name, parameter)) for name, parameter in trained.items())
    model_dir = local_model_dir(model.peft_config["default"].base_model_name_or_path)
    write_adapter(target, model, tensors, model_dir, chat_template)


def _frozen_parameters(spec: Spec, model_dir: str, precision: Precision, names: Set[str]) -> dict[str, torch.Tensor]:
    """Load parameters that are not trained, and so are in no checkpoint, from the source's model."""
    source, _ = load_base(without_flash_attention(spec), model_dir, precision, pad_token_id(load_tokenizer(model_dir)))
    return {name: parameter.detach() for name, parameter in source.named_parameters() if name in names}


def _read_parameter(folder: str, parts: tuple[Part, ...], name: str, like: torch.Tensor) -> torch.Tensor:
    """Read one parameter's fp32 weights from all ranks' slices, with the shape and dtype of `like`. Raises Damaged."""
    tensor = torch.empty(like.numel(), dtype=torch.float32)
    read_slices(folder, parts, [Read("weight", Slice(name, 0, like.numel()), as_bytes(tensor.numpy()))])
    return tensor.reshape(like.shape).to(like.dtype)
