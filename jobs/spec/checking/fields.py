"""The fields of a spec of any kind, by their dotted names, and the field that a wrong name probably means."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping
from typing import Final, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cluster.text import did_you_mean
from jobs.spec.queue import Kind

Models = Mapping[Kind, type[BaseModel]]
SEARCHES: Final[tuple[Kind, ...]] = ("sweep", "compare")  # kinds with a base and a space

# Names that other tools use, anywhere or in one section. Case, '-' and '_' are ignored when names are compared.
ALIASES: Mapping[str, str] = {
    "lr": "train.learning_rate",
    "rate": "train.learning_rate",
    "peak_lr": "train.learning_rate",
    "epochs": "train.num_train_epochs",
    "num_epochs": "train.num_train_epochs",
    "max_epochs": "train.num_train_epochs",
    "steps": "train.max_steps",
    "train_steps": "train.max_steps",
    "num_train_steps": "train.max_steps",
    "batch_size": "train.per_device_train_batch_size",
    "micro_batch_size": "train.per_device_train_batch_size",
    "micro_batch": "train.per_device_train_batch_size",
    "train_batch_size": "train.per_device_train_batch_size",
    "train_micro_batch_size_per_gpu": "train.per_device_train_batch_size",
    "per_gpu_train_batch_size": "train.per_device_train_batch_size",
    "eval_batch_size": "eval.per_device_eval_batch_size",
    "total_batch_size": "train.global_batch_size",
    "effective_batch_size": "train.global_batch_size",
    "grad_accum": "train.gradient_accumulation_steps",
    "accumulation": "train.gradient_accumulation_steps",
    "accumulation_steps": "train.gradient_accumulation_steps",
    "accumulate_grad_batches": "train.gradient_accumulation_steps",
    "grad_accum_steps": "train.gradient_accumulation_steps",
    "clip": "train.max_grad_norm",
    "grad_clip": "train.max_grad_norm",
    "clip_grad_norm": "train.max_grad_norm",
    "gradient_clipping": "train.max_grad_norm",
    "gradient_clip_val": "train.max_grad_norm",
    "warmup": "train.warmup_ratio",
    "warmup_fraction": "train.warmup_ratio",
    "num_warmup_steps": "train.warmup_steps",
    "scheduler": "train.lr_scheduler_type",
    "lr_scheduler": "train.lr_scheduler_type",
    "schedule": "train.lr_scheduler_type",
    "wd": "train.weight_decay",
    "decay": "train.weight_decay",
    "beta1": "train.adam_beta1",
    "beta2": "train.adam_beta2",
    "eps": "train.adam_epsilon",
    "epsilon": "train.adam_epsilon",
    "optimizer": "train.optim",
    "lora_r": "lora.rank",
    "lora.r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "lora_target_modules": "lora.target_modules",
    "lora.targets": "lora.target_modules",
    "prompt_tuning_init_text": "prompt.init_text",
    "activation_checkpointing": "train.gradient_checkpointing",
    "mixed_precision": "train.bf16",
    "precision": "train.bf16",
    "zero_stage": "train.zero.stage",
    "deepspeed": "train.zero",
    "zero_optimization": "train.zero",
    "training": "train",
    "training_args": "train",
    "max_length": "data.seq_len",
    "max_len": "data.seq_len",
    "max_seq_length": "data.seq_len",
    "max_seq_len": "data.seq_len",
    "sequence_length": "data.seq_len",
    "block_size": "data.seq_len",
    "cutoff_len": "data.seq_len",
    "pack": "data.packing",
    "sample_packing": "data.packing",
    "dataset": "data",
    "datasets": "data",
    "train_file": "data.train",
    "train_data": "data.train",
    "train_path": "data.train",
    "validation_file": "data.eval",
    "validation": "data.eval",
    "valid": "data.eval",
    "eval_file": "data.eval",
    "eval_data": "data.eval",
    "test_size": "data.eval_fraction",
    "val_split": "data.eval_fraction",
    "text_column": "data.columns.text",
    "label_column": "data.columns.label",
    "messages_column": "data.columns.messages",
    "class_names": "data.labels",
    "model_name": "model.path",
    "model.name": "model.path",
    "model.id": "model.path",
    "data.path": "data.train",
    "data.name": "data.train",
    "data.type": "data.format",
    "base_model": "model.path",
    "model_path": "model.path",
    "model_name_or_path": "model.path",
    "num_classes": "model.num_labels",
    "attention": "model.attn_implementation",
    "attn": "model.attn_implementation",
    "evaluation": "eval",
    "evaluate": "eval",
    "eval_every": "eval.eval_steps",
    "compute_metrics": "eval.metrics",
    "workers": "resources.num_workers",
    "gpus": "resources.num_workers",
    "num_gpus": "resources.num_workers",
    "n_gpus": "resources.num_workers",
    "nproc_per_node": "resources.num_workers",
    "world_size": "resources.num_workers",
    "gpu_type": "resources.accelerator_type",
    "cpus": "resources.cpus_per_worker",
    "num_cpus": "resources.cpus_per_worker",
    "checkpoints": "checkpoint",
    "checkpointing": "checkpoint",
    "save_every": "checkpoint.save_steps",
    "checkpoint_every": "checkpoint.save_steps",
    "keep": "checkpoint.save_total_limit",
    "output": "storage_path",
    "output_dir": "storage_path",
    "out_dir": "storage_path",
    "save_dir": "storage_path",
    "storage": "storage_path",
    "run_name": "name",
    "job_name": "name",
    "random_seed": "seed",
    "schema_version": "version",
    "cwd": "working_dir",
    "workdir": "working_dir",
    "prio": "queue.priority",
    "team": "queue.tenant",
    "account": "queue.tenant",
    "depends_on": "queue.after",
    "dependencies": "queue.after",
    "timeout": "queue.max_runtime_s",
    "time_limit": "queue.max_runtime_s",
    "max_time": "queue.max_runtime_s",
    "webhook": "queue.on_end",
    "type": "kind",
}
# In a spec of kind command, these names mean other fields than above.
COMMAND_ALIASES: Mapping[str, str] = {
    "cmd": "command",
    "entrypoint": "command",
    "program": "command",
    "script": "command",
    "args": "command",
    "arguments": "command",
    "environment": "env",
    "env_vars": "env",
    "variables": "env",
    "gpus": "resources.gpus_per_worker",
    "num_gpus": "resources.gpus_per_worker",
    "n_gpus": "resources.gpus_per_worker",
    "processes": "resources.num_workers",
    "num_processes": "resources.num_workers",
}
_LONGEST_KEY = 100  # characters of a key that are compared; every field is shorter
# Settings of other tools that Fleetune does not offer, with the reason.
ABSENT: Mapping[str, str] = {
    "trust_remote_code": "code from a model directory is never run",
    "peft": "write method: lora or method: prompt, with their settings in the section of that name",
    "qlora": "weights are not quantised: write method: lora",
    "pbt": "population-based training changes values within a run, so it ends with no learning rate and no warmup",
    "tokenizer": "the tokenizer is the one in the model's directory",
    "dataloader_num_workers": "rows are always read ahead",
    "<<": "merge keys are not read: write the values out",
}


@functools.cache
def spec_fields(model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """Return every field by its dotted name, in the order of the spec: `train`, `train.learning_rate`, and so on."""
    return dict(_walk(model, ""))


def kind_of(model: type[BaseModel]) -> Kind:
    """Return the kind of spec that a class describes."""
    kind: Kind = get_args(model.model_fields["kind"].annotation)[0]
    return kind


def _walk(model: type[BaseModel], prefix: str) -> Iterable[tuple[str, FieldInfo]]:
    for name, info in model.model_fields.items():
        yield prefix + name, info
        if section := section_model(info):
            yield from _walk(section, f"{prefix}{name}.")


def section_model(info: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a field that is a section; None for a plain value."""
    annotation = info.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def item_model(info: FieldInfo) -> type[BaseModel]:
    """Return the model of the items of a field that is a list of sections."""
    item = get_args(info.annotation)[0]
    found: type[BaseModel] = item if isinstance(item, type) else get_args(item)[0]
    return found


def keys_of(section: str, model: type[BaseModel]) -> list[str]:
    """List the fields directly under a section ("" for the top level)."""
    prefix = f"{section}." if section else ""
    names = [name[len(prefix) :] for name in spec_fields(model) if name.startswith(prefix)]
    return [name for name in names if "." not in name]


def unknown_key(section: str, key: str, model: type[BaseModel], others: Models | None = None) -> tuple[str, str | None]:
    """Return a message about a key that the section does not have, and the field that was probably meant.

    Args:
        others: classes of the kinds of specs that may have the key.
    """
    fields, key = spec_fields(model), key[:_LONGEST_KEY]
    if other := other_kind(f"{section}.{key}" if section else key, model, others or {}):
        return f"unknown key: it is for kind: {other}, and this spec is of kind {kind_of(model)}", None
    if reason := ABSENT.get(key):
        return f"unknown key: {reason}", None
    if target := _alias(f"{section}.{key}", model) or (None if homes_of(key, model) else _alias(key, model)):
        home, _, name = target.rpartition(".")
        return (f"unknown key; it is called {name} here" if home == section else f"unknown key; use {target}"), target
    here = f"{section}.{key}" if section else key
    if here in fields:
        home, _, name = here.rpartition(".")
        return f"no dots in the file: write {name} indented under {home}: (dots are for --set)", here
    if homes := homes_of(key, model):
        places = " or ".join(home.rpartition(".")[0] or "the top level" for home in homes)
        return f"belongs under {places}", homes[0] if len(homes) == 1 else None
    near = difflib.get_close_matches(_plain(key), {_plain(name) for name in keys_of(section, model)}, n=1, cutoff=0.7)
    if near:
        name = next(name for name in keys_of(section, model) if _plain(name) == near[0])
        return f"unknown key; did you mean {name}?", f"{section}.{name}" if section else name
    if guess := did_you_mean(key, [name for name in fields if name.count(".") != section.count(".")]):
        return f"unknown key{guess}", None
    return f"unknown key; {section or 'the spec'} has {', '.join(keys_of(section, model))}", None


def homes_of(key: str, model: type[BaseModel]) -> list[str]:
    """List the fields with exactly this last name, in any section."""
    return [name for name in spec_fields(model) if name.rpartition(".")[2] == key]


def other_kind(name: str, model: type[BaseModel], models: Models) -> Kind | None:
    """Return another kind of spec whose top level has this key or its section, if this kind has it nowhere."""
    top = name.partition(".")[0]
    others = (kind for kind, other in models.items() if other is not model and top in keys_of("", other))
    return None if homes_of(top, model) else next(others, None)


def _alias(key: str, model: type[BaseModel]) -> str | None:
    aliases = {**ALIASES, **COMMAND_ALIASES} if kind_of(model) == "command" else ALIASES
    target = next((target for alias, target in aliases.items() if _plain(alias) == _plain(key)), None)
    return target if target in spec_fields(model) else None


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
