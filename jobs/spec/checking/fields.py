"""The fields of a spec of any kind, by their dotted names, and the field that a wrong name probably means."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, cast, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cluster.text import did_you_mean
from jobs.spec.queue import Kind

Models = Mapping[Kind, type[BaseModel]]
SEARCHES: Final[tuple[Kind, ...]] = ("sweep", "compare")  # kinds with a base and a space

# Names that other tools use for a field. A name with a dot counts only in that section. Case, '-' and '_' are ignored
# when names are compared.
OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "train.learning_rate": ("lr", "rate", "peak_lr"),
    "train.num_train_epochs": ("epochs", "num_epochs", "max_epochs"),
    "train.max_steps": ("steps", "train_steps", "num_train_steps"),
    "train.per_device_train_batch_size": (
        "batch_size",
        "micro_batch_size",
        "micro_batch",
        "train_batch_size",
        "train_micro_batch_size_per_gpu",
        "per_gpu_train_batch_size",
    ),
    "eval.per_device_eval_batch_size": ("eval_batch_size",),
    "train.global_batch_size": ("total_batch_size", "effective_batch_size"),
    "train.gradient_accumulation_steps": (
        "grad_accum",
        "accumulation",
        "accumulation_steps",
        "accumulate_grad_batches",
        "grad_accum_steps",
    ),
    "train.max_grad_norm": ("clip", "grad_clip", "clip_grad_norm", "gradient_clipping", "gradient_clip_val"),
    "train.warmup_ratio": ("warmup", "warmup_fraction"),
    "train.warmup_steps": ("num_warmup_steps",),
    "train.lr_scheduler_type": ("scheduler", "lr_scheduler", "schedule"),
    "train.weight_decay": ("wd", "decay"),
    "train.adam_beta1": ("beta1",),
    "train.adam_beta2": ("beta2",),
    "train.adam_epsilon": ("eps", "epsilon"),
    "train.optim": ("optimizer",),
    "lora.rank": ("lora_r", "lora.r", "lora_rank"),
    "lora.alpha": ("lora_alpha",),
    "lora.dropout": ("lora_dropout",),
    "lora.target_modules": ("lora_target_modules", "lora.targets"),
    "prompt.init_text": ("prompt_tuning_init_text",),
    "train.gradient_checkpointing": ("activation_checkpointing",),
    "train.bf16": ("mixed_precision", "precision"),
    "train.zero.stage": ("zero_stage",),
    "train.zero": ("deepspeed", "zero_optimization"),
    "train": ("training", "training_args"),
    "data.seq_len": (
        "max_length",
        "max_len",
        "max_seq_length",
        "max_seq_len",
        "sequence_length",
        "block_size",
        "cutoff_len",
    ),
    "data.packing": ("pack", "sample_packing"),
    "data": ("dataset", "datasets"),
    "data.train": ("train_file", "train_data", "train_path", "data.path", "data.name"),
    "data.eval": ("validation_file", "validation", "valid", "eval_file", "eval_data"),
    "data.eval_fraction": ("test_size", "val_split"),
    "data.columns.text": ("text_column",),
    "data.columns.label": ("label_column",),
    "data.columns.messages": ("messages_column",),
    "data.labels": ("class_names",),
    "model.path": ("model_name", "model.name", "model.id", "base_model", "model_path", "model_name_or_path"),
    "data.format": ("data.type",),
    "model.num_labels": ("num_classes",),
    "model.attn_implementation": ("attention", "attn"),
    "model.chat_template": ("chat_template_path", "template"),
    "eval": ("evaluation", "evaluate"),
    "eval.eval_steps": ("eval_every",),
    "eval.metrics": ("compute_metrics",),
    "eval.lm_eval.tasks": ("eval.lm_eval.task",),
    "resources.num_workers": ("workers", "gpus", "num_gpus", "n_gpus", "nproc_per_node", "world_size"),
    "resources.accelerator_type": ("gpu_type",),
    "resources.cpus_per_worker": ("cpus", "num_cpus"),
    "checkpoint": ("checkpoints", "checkpointing"),
    "checkpoint.save_steps": ("save_every", "checkpoint_every"),
    "checkpoint.save_total_limit": ("keep",),
    "storage_path": ("output", "output_dir", "out_dir", "save_dir", "storage"),
    "name": ("run_name", "job_name"),
    "seed": ("random_seed",),
    "version": ("schema_version",),
    "working_dir": ("cwd", "workdir"),
    "queue.priority": ("prio",),
    "queue.tenant": ("team", "account"),
    "queue.after": ("depends_on", "dependencies"),
    "queue.max_runtime_s": ("timeout", "time_limit", "max_time"),
    "queue.on_end": ("webhook",),
    "kind": ("type",),
}
# In a spec of kind command, these names mean other fields than above.
OTHER_NAMES_OF_COMMAND: Mapping[str, tuple[str, ...]] = {
    "command": ("cmd", "entrypoint", "program", "script", "args", "arguments"),
    "env": ("environment", "env_vars", "variables"),
    "resources.gpus_per_worker": ("gpus", "num_gpus", "n_gpus"),
    "resources.num_workers": ("processes", "num_processes"),
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
    "eval_strategy": "evaluations follow every eval.eval_steps steps, and the last step",
    "evaluation_strategy": "evaluations follow every eval.eval_steps steps, and the last step",
    "save_strategy": "checkpoints are written every checkpoint.save_steps steps, and after the last step",
    "logging_steps": "every step is logged",
    "logging_strategy": "every step is logged",
    "resume_from_checkpoint": "`fleetune run --resume RUN` continues from the newest checkpoint",
    "use_cpu": "write resources.gpus_per_worker: 0",
    "no_cuda": "write resources.gpus_per_worker: 0",
    "fsdp": "the model is sharded with ZeRO: see train.zero",
    "torch_compile": "models are not compiled",
    "local_rank": "workers know their rank",
    "report_to": "metrics are in the metrics/ of the run, one JSON object a step, and `fleetune show RUN` shows them",
    "push_to_hub": "the model is written to the run's model/, from which `hf upload` takes it",
    "<<": "merge keys are not read: write the values out",
}


@functools.cache
def spec_fields(model: type[BaseModel]) -> Mapping[str, FieldInfo]:
    """Return every field by its dotted name, in the order of the spec: `train`, `train.learning_rate`, and so on."""
    return dict(_walk(model, ""))


def kind_of(model: type[BaseModel]) -> Kind:
    """Return the kind of spec that a class describes."""
    return cast(Kind, get_args(model.model_fields["kind"].annotation)[0])


def _walk(model: type[BaseModel], prefix: str) -> Iterable[tuple[str, FieldInfo]]:
    for name, info in model.model_fields.items():
        yield prefix + name, info
        if section := section_model(info):
            yield from _walk(section, f"{prefix}{name}.")


def section_model(info: FieldInfo) -> type[BaseModel] | None:
    """Return the model of a field that is a section; None for a plain value."""
    annotation = info.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def model_at(model: type[BaseModel], path: Sequence[str]) -> type[BaseModel] | None:
    """Return the model of the value at `path`, such as a source for data, train, 0; None if it has no fixed keys.

    The items of a list have the path of the list with or without their number, because one source needs no list.
    """
    found: type[BaseModel] | None = model
    for part in path:
        if found is None or part.isdecimal():
            continue
        info = found.model_fields.get(part)
        found = None if info is None else _model_of(info.annotation)
    return found


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) is dict:
        return None
    return next((found for part in get_args(annotation) if (found := _model_of(part)) is not None), None)


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
    alias = _alias(key, model)
    if alias and homes_of(key, model) and alias.rpartition(".")[0] != section:
        alias = None  # the name is that of a field in another section
    if target := _alias(f"{section}.{key}", model) or alias:
        home, _, name = target.rpartition(".")
        return (f"unknown key; it is called {name} here" if home == section else f"unknown key; use {target}"), target
    here = f"{section}.{key}" if section else key
    if here in fields:
        home, _, name = here.rpartition(".")
        return f"no dots in the file: write {name} indented under {home}: (dots are for --set)", here
    if not section and f"base.{key}" in fields:
        return "belongs under base", f"base.{key}"
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
    """Return the field that another tool's name means; None if this kind of spec has no such field."""
    tables = (OTHER_NAMES_OF_COMMAND, OTHER_NAMES) if kind_of(model) == "command" else (OTHER_NAMES,)
    found = (field for table in tables for field, names in table.items() if _plain(key) in map(_plain, names))
    target = next(found, None)
    return target if target in spec_fields(model) else None


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
