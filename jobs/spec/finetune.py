"""The spec of kind `finetune`, a frozen pydantic model. Light to import: no torch, no ray.

Training arguments have the names and the meaning of Hugging Face's `TrainingArguments`.
A value that follows from other fields is derived (see `jobs.planning.batching`) and has no field.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer, model_validator

from cluster.capacity.gang import Gang
from cluster.text import did_you_mean
from jobs.frozen import Frozen
from jobs.spec.bounds import MOST_COUNT, Count, CpusPerWorker, Epochs, Rows, Workers, name_field
from jobs.spec.data import Data, Source, StoragePath, absolute_sources, checked_path
from jobs.spec.evaluation import Checkpoint, Eval
from jobs.spec.method import ChosenMethod, Lora, Method, Prompt
from jobs.spec.queue import Queue
from jobs.spec.references import (
    MOST_TEMPLATE_CHARS,
    RUN_REFERENCE,
    absolute_model,
    absolute_storage,
    absolute_working_dir,
    folder_of,
    template_text,
)
from jobs.spec.remedies import Remedies
from jobs.spec.vary import EITHER_IN_TRAIN, JobSpec
from jobs.spec.zero import Zero

SCHEMA_VERSION: Final = 1
# Fields of `train` that a plan chooses where they are left out (`jobs.preflight.plan`).
Planned = Literal["per_device_train_batch_size", "gradient_checkpointing", "zero"]
PLANNED: Final[frozenset[Planned]] = frozenset(get_args(Planned))

Task = Literal["causal-lm", "sequence-classification"]
SchedulerType = Literal["linear", "cosine", "constant_with_warmup", "warmup_stable_decay"]


class NotWhole(ValueError):
    """Raised for a number that must be a whole number, but is not."""


class Model(Frozen):
    """The model to start from."""

    path: str = Field(
        min_length=1,
        description="Local directory (relative to the spec's file), hub id, allowed URL, or run:NAME (a run's model).",
    )
    task: Task = Field(description="What the model is trained for: causal-lm or sequence-classification.")
    num_labels: int | None = Field(
        None,
        ge=2,
        le=1_048_576,
        description="Number of classes for sequence-classification; left out, it is the length of data.labels.",
    )
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] | None = Field(
        None, description="Attention kernel, as transformers names it; default: sdpa if the model supports it."
    )
    chat_template: str | None = Field(
        None,
        min_length=1,
        max_length=MOST_TEMPLATE_CHARS,
        description="A .jinja file (relative to the spec's file), or the template itself; default: the tokenizer's.",
    )

    @field_validator("path")
    @classmethod
    def _a_run_has_a_name(cls, path: str) -> str:
        if path.startswith("run:") and not RUN_REFERENCE.match(path):
            raise ValueError(
                f"{path!r}: after run: comes the name of a run or job; write the path of a model without run:"
            )
        return path if path.startswith("run:") else checked_path(path)

    def with_files(self, base: str) -> Model:
        """Make the path absolute and read the template, relative to the directory or URL `base`. Raises SpecError."""
        path, template = absolute_model(self.path, base), template_text(self.chat_template, base)
        return self.model_copy(update={"path": path, "chat_template": template})


class Train(Frozen):
    """Training arguments, with Hugging Face's names and meaning."""

    learning_rate: float = Field(2e-5, gt=0.0, le=1.0, description="Peak learning rate.")
    lr_scheduler_type: SchedulerType = Field("linear", description="Shape of the learning rate after the warmup.")
    warmup_ratio: float | None = Field(None, ge=0.0, le=1.0, description="Warmup as a share of all steps.")
    warmup_steps: float | None = Field(
        None,
        ge=0.0,
        le=MOST_COUNT,
        description="Warmup in optimizer steps; below 1 it is a share of all steps, as in transformers 5.",
    )
    decay_ratio: float = Field(
        0.1, ge=0.0, le=1.0, description="Share of all steps that decay at the end, for warmup_stable_decay."
    )
    num_train_epochs: Epochs | None = Field(None, description="Passes over the training rows (3 if left out).")
    max_steps: Count | None = Field(None, description="Optimizer steps; replaces num_train_epochs.")
    global_batch_size: Rows | None = Field(
        None, description="Rows per optimizer step over all workers; accumulation is derived from it."
    )
    global_batch_tokens: Count | None = Field(
        None, description="Global batch in tokens: global_batch_tokens // data.seq_len rows."
    )
    per_device_train_batch_size: Rows = Field(1, description="Rows per worker in one forward pass (micro-batch).")
    gradient_accumulation_steps: Rows | None = Field(
        None, description="Forward passes per optimizer step; default: derived from the global batch."
    )
    optim: Literal["adamw_torch"] = Field("adamw_torch", description="The optimizer, as Hugging Face names it.")
    weight_decay: float = Field(0.0, ge=0.0, lt=1.0, description="Decay of weight matrices; not of norms and biases.")
    adam_beta1: float = Field(0.9, ge=0.0, lt=1.0, description="AdamW's first beta.")
    adam_beta2: float = Field(0.999, ge=0.0, lt=1.0, description="AdamW's second beta.")
    adam_epsilon: float = Field(1e-8, gt=0.0, le=1.0, description="AdamW's epsilon.")
    max_grad_norm: float = Field(
        1.0, ge=0.0, le=1e30, description="Gradients are scaled down to this norm; 0 turns it off."
    )
    bf16: bool | None = Field(
        None, description="Compute in bfloat16 with fp32 master weights; default: true on GPUs that support it."
    )
    fp16: bool = Field(False, description="Compute in float16 with loss scaling, for devices without bfloat16.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in the backward pass.")
    group_by_length: bool = Field(
        True, description="Put rows of similar length in one step if rows are not packed, so that padding is smaller."
    )
    zero: Zero = Field(default_factory=Zero, description="DeepSpeed ZeRO.")

    @model_serializer(mode="wrap")
    def _without_defaults_that_a_plan_may_choose(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Do not dump a field of PLANNED that the user left out: a plan may also choose it after the dump is read."""
        if not isinstance(self, Train):  # model_copy accepts anything in place of a section
            return self
        return {name: value for name, value in dumped(self).items() if name not in PLANNED - self.model_fields_set}

    @model_validator(mode="after")
    def _no_two_fields_for_one_setting(self) -> Train:
        for one, other in EITHER_IN_TRAIN:
            if getattr(self, one) is not None and getattr(self, other) is not None:
                raise ValueError(f"{one} and {other} are both given: drop one of them, or set it to null")
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 are both true: drop one of them")
        if self.warmup_steps is not None and self.warmup_steps >= 1 and self.warmup_steps != int(self.warmup_steps):
            raise NotWhole(f"warmup_steps ({self.warmup_steps}) must be a whole number, or a share below 1")
        return self


class LeastAndMost(Frozen):
    """The form of `num_workers` that also gives the fewest workers."""

    min: Workers = Field(description="Fewest workers.")
    max: Workers = Field(description="Most workers.")


class Resources(Frozen):
    """The gang of a run: all its workers start together, or none does."""

    num_workers: Workers = Field(
        1, description="Workers (processes), one GPU each. {min: N, max: N}: as many as there are free slots for."
    )
    min_workers: Workers | None = Field(
        None, description="Fewest workers; num_workers is then the most. Same as num_workers.min."
    )
    gpus_per_worker: Literal[0, 1] = Field(1, description="1 trains on GPUs; 0 on CPUs, for small models and tests.")
    cpus_per_worker: CpusPerWorker = Field(
        1, description="CPU cores per worker, which Ray reserves and torch's threads use."
    )
    accelerator_type: str | None = Field(
        None, description="Only GPUs of this type, as Ray names it (A100, H100). No effect without GPUs."
    )
    plan: bool = Field(
        True, description="Predict the memory of workers, choose what train leaves out, and refuse what cannot fit."
    )

    @model_validator(mode="before")
    @classmethod
    def _from_min_to_max(cls, value: object) -> object:
        given = value.get("num_workers") if isinstance(value, Mapping) else None
        if not (isinstance(value, Mapping) and isinstance(given, Mapping) and given.keys() == {"min", "max"}):
            return value
        if value.get("min_workers") not in (None, given["min"]):
            raise ValueError("give num_workers: {min: N, max: N}, or num_workers and min_workers, and not both")
        return {**value, "num_workers": given["max"], "min_workers": given["min"]}

    @model_serializer(mode="wrap")
    def _as_one_value(self, dumped: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Dump one value for both fields, so that replacing `num_workers` in the dump also replaces the minimum."""
        if not isinstance(self, Resources):  # as in Train
            return self
        values: dict[str, Any] = dumped(self)
        least = values.pop("min_workers", None)
        return values if least is None else {**values, "num_workers": {"min": least, "max": self.num_workers}}

    @field_validator("num_workers", mode="before", json_schema_input_type=Workers | LeastAndMost)
    @classmethod
    def _one_number_or_two(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        raise ValueError(f"must be a whole number, or {{min: N, max: N}}, but is {json.dumps(value)[:60]}")

    @model_validator(mode="after")
    def _the_least_is_not_more_than_the_most(self) -> Resources:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"num_workers is from {self.min_workers} to {self.num_workers}: min must not exceed max")
        Gang(self.num_workers, self.cpus_per_worker, self.gpus_per_worker).check_size()
        return self


class Spec(JobSpec):
    """A fine-tuning job."""

    version: Literal[1] = Field(SCHEMA_VERSION, description="Version of this schema.")
    kind: Literal["finetune"] = Field(
        "finetune", description="finetune. The other kinds, command, sweep and compare, have other fields."
    )
    name: str = name_field("run", "the run's name")
    model: Model = Field(description="The model to start from.")
    method: Method = Field(default_factory=ChosenMethod, description="What is trained: full, lora or prompt.")
    lora: Lora = Field(default_factory=Lora, description="LoRA, for method: lora.")
    prompt: Prompt = Field(default_factory=Prompt, description="Prompt tuning, for method: prompt.")
    data: Data = Field(description="The samples.")
    train: Train = Field(default_factory=Train, description="Training arguments.")
    eval: Eval = Field(default_factory=Eval, description="Evaluation.")
    remedies: Remedies = Field(default_factory=Remedies, description="Troubles that a run repairs by itself.")
    resources: Resources = Field(default_factory=Resources, description="The gang of workers.")
    checkpoint: Checkpoint = Field(default_factory=Checkpoint, description="Checkpoints.")
    storage_path: StoragePath = Field(
        "runs", min_length=1, description="Directory (relative to the spec's file) or allowed URL that holds the runs."
    )
    seed: int = Field(42, ge=0, lt=2**63, description="Seed of the row order, of new weights and of dropout.")
    working_dir: str | None = Field(
        None,
        min_length=1,
        description="Directory (relative to the spec's file) with modules that you write; every node must see it.",
    )
    queue: Queue = Field(default_factory=Queue, description="What the job asks of the queue.")

    @model_validator(mode="after")
    def _task_and_format_fit(self) -> Spec:
        classify = self.model.task == "sequence-classification"
        if classify and self.eval.general:
            raise ValueError(
                "eval.general is for causal-lm: a classifier predicts no tokens, so it has no loss on general text. "
                "Leave eval.general out"
            )
        if classify and self.eval.lm_eval.tasks:
            raise ValueError("eval.lm_eval is for causal-lm: a classifier predicts no tokens. Leave eval.lm_eval out")
        for field, source in self.sources:
            name = self.data.format_of(source)
            if ":" not in name and classify != (name == "classification"):
                what = "data.format" if source.format is None else f"the format of {source.path} in {field}"
                raise ValueError(
                    f"model.task is {self.model.task} but {what} is {name}: sequence-classification goes with "
                    "classification, causal-lm with text, chat, prompt-completion or instruction"
                )
        if classify and self.num_labels is None:
            raise ValueError("sequence-classification needs data.labels (the names) or model.num_labels")
        if classify and self.data.labels and self.model.num_labels not in (None, len(self.data.labels)):
            raise ValueError(
                f"model.num_labels is {self.model.num_labels}, but data.labels names {len(self.data.labels)} classes"
            )
        if not classify and (self.model.num_labels is not None or self.data.labels is not None):
            raise ValueError("model.num_labels and data.labels are for sequence-classification only")
        return self

    @model_validator(mode="after")
    def _only_the_section_of_the_method_is_given(self) -> Spec:
        for name, section in (("lora", Lora), ("prompt", Prompt)):
            given = getattr(self, name)
            # Specs that were written by the program have all fields of both sections.
            is_written = name in self.model_fields_set and given.model_fields_set != section.model_fields.keys()
            if self.method.kind != name and (given != section() or is_written):
                raise ValueError(
                    f"{name} is given, but method is {self.method.kind}: set method: {name}, or leave {name} out"
                )
        return self

    @model_validator(mode="after")
    def _the_best_checkpoint_is_defined(self) -> Spec:
        wanted = self.checkpoint.metric_for_best_model
        needed = {"checkpoint.metric_for_best_model": wanted, "eval.eval_steps": self.eval.eval_steps}
        patience, bound = self.eval.early_stopping_patience, self.remedies.forgetting.max_general_loss_increase
        for field, part, value, needs in (
            ("eval.early_stopping_patience", "the patience", patience, needed),
            ("remedies.forgetting", "the bound", bound, {"eval.general": self.eval.general, **needed}),
        ):
            missing = [name for name, given in needs.items() if given is None]
            if value is not None and missing:
                raise ValueError(f"{field} needs {missing[0]}: give it, or leave {part} out")
        if bound is not None and self.remedies.forgetting.action == "raise_replay":
            self._check_replay()
        if wanted is None:
            return self
        if not self.data.has_eval:
            raise ValueError("checkpoint.metric_for_best_model needs held-out samples: data.eval or data.eval_fraction")
        if not self.eval.may_report(wanted):
            raise ValueError(
                f"checkpoint.metric_for_best_model is {wanted}, but eval.metrics has {list(self.eval.metrics)}"
                f"{did_you_mean(wanted.removeprefix('eval_'), ('loss', *self.eval.metrics))}"
            )
        return self

    def _check_replay(self) -> None:
        """Raise ValueError if no source for replay can be used more often."""
        replayed = [source for source in self.data.train if source.replay]
        if not replayed or len(replayed) == len(self.data.train):
            raise ValueError(
                "remedies.forgetting.action raise_replay needs a source with `replay: true` in data.train, and one "
                "without. Mark a source of general text, or set action: lower_learning_rate"
            )
        if limited := [source.path for source in replayed if source.max_epochs is not None]:
            raise ValueError(
                f"data.train: {limited[0]} has max_epochs, so remedies.forgetting cannot raise its share. Leave "
                "max_epochs out for sources with `replay: true`"
            )

    @model_validator(mode="after")
    def _gpus_for_fp16_and_flash_attention(self) -> Spec:
        """Reject fp16 and flash attention on CPUs: DeepSpeed's loss scaling and the kernels need GPUs."""
        if self.resources.gpus_per_worker > 0:
            return self
        if self.train.fp16:
            raise ValueError("train.fp16 needs GPUs, but gpus_per_worker is 0: leave it out (fp32), or set train.bf16")
        if self.model.attn_implementation == "flash_attention_2":
            raise ValueError("flash_attention_2 needs GPUs, but gpus_per_worker is 0: leave attn_implementation out")
        return self

    @model_validator(mode="after")
    def _flash_attention_keeps_packed_samples_apart(self) -> Spec:
        """Require one row per batch: with this kernel, transformers finds sample borders only in such a batch."""
        rows = max(self.train.per_device_train_batch_size, self.eval.per_device_eval_batch_size)
        if self.packed and self.model.attn_implementation == "flash_attention_2" and rows > 1:
            raise ValueError(
                f"flash_attention_2 keeps packed samples apart only in batches of one row, but the spec has {rows}. "
                "Set train.per_device_train_batch_size and eval.per_device_eval_batch_size to 1 (and a longer "
                "data.seq_len), or data.packing: false, or leave model.attn_implementation out"
            )
        return self

    def with_absolute_paths(self, path: str) -> Spec:
        base = folder_of(path)
        working_dir = absolute_working_dir(self.working_dir, base)
        data = {name: absolute_sources(getattr(self.data, name), base) for name in ("train", "eval")}
        return self.model_copy(
            update={
                "working_dir": working_dir,
                "storage_path": absolute_storage(self.storage_path, base),
                "data": self.data.model_copy(update=data),
                "eval": self.eval.with_absolute_paths(base),
                "model": self.model.with_files(base),
            }
        )

    @property
    def sources(self) -> tuple[tuple[str, Source], ...]:
        """Every source, with the field that names it: data.train, data.eval or eval.general."""
        fields = {"data.train": self.data.train, "data.eval": self.data.eval, "eval.general": self.eval.general}
        return tuple((field, source) for field, sources in fields.items() for source in sources or ())

    @property
    def formats(self) -> frozenset[str]:
        """Formats that occur in any source."""
        return frozenset(self.data.format_of(source) for _, source in self.sources)

    @property
    def needs_own_template(self) -> bool:
        """Whether the tokenizer must have a chat template."""
        return "chat" in self.formats and self.model.chat_template is None

    @property
    def evaluates(self) -> bool:
        """Whether there is anything to score: held-out samples, general text or tasks of lm-eval."""
        return self.data.has_eval or self.eval.general is not None or bool(self.eval.lm_eval.tasks)

    @property
    def num_labels(self) -> int | None:
        """Number of classes, or None for a language model."""
        if self.model.num_labels is not None:
            return self.model.num_labels
        return len(self.data.labels) if self.data.labels else None

    @property
    def packed(self) -> bool:
        """Whether a row holds several samples.

        Classification pools one token a row, and a trained prompt precedes each row: such rows hold one sample.
        """
        return self.data.packing and self.model.task == "causal-lm" and self.method.kind != "prompt"

    @property
    def grouped_by_length(self) -> bool:
        """Whether the rows of a group of steps are sorted by length.

        A source for replay may get more weight from any step on, and a step inside a group would change earlier ones.
        """
        return self.train.group_by_length and not self.packed and not any(one.replay for one in self.data.train)
