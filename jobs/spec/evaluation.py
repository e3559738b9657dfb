"""The sections `eval` and `checkpoint` of a spec: when a run is scored, and which of its states are kept."""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import AfterValidator, Field, field_validator, model_validator

from jobs.frozen import Frozen
from jobs.spec.bounds import Count, Rows
from jobs.spec.data import Source, Sources, absolute_sources
from jobs.spec.references import absolute

# Held-out metrics that Fleetune computes, with the values of model.task for which each is meaningful.
METRICS: Final[dict[str, tuple[str, ...]]] = {
    "loss": ("causal-lm", "sequence-classification"),
    "perplexity": ("causal-lm",),
    "accuracy": ("causal-lm", "sequence-classification"),
    "f1": ("sequence-classification",),
    "exact_match": ("causal-lm",),
}


def full_name(metric: str) -> str:
    """Return the name of a held-out metric as evaluations report it: `eval_loss` for `loss` and for `eval_loss`."""
    return f"eval_{metric.removeprefix('eval_')}"


def is_loss(metric: str) -> bool:
    """Whether lower values of a metric are better, by its name."""
    return metric.endswith(("loss", "perplexity", "bits_per_byte", "brier_score"))


def _as_text(sources: tuple[Source, ...]) -> tuple[Source, ...]:
    """Give sources without a format the format text. The default, data.format, is for the task, such as chat."""
    if any(source.weight or source.max_epochs for source in sources):
        raise ValueError("weight and max_epochs are for data.train: every row of general text is scored once")
    if any(source.replay for source in sources):
        raise ValueError("replay is for data.train: general text that is scored is never trained on")
    return tuple(source.model_copy(update={"format": source.format or "text"}) for source in sources)


SCORABLE: Final = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")  # output types of lm-eval's tasks


def is_task_file(task: str) -> bool:
    """Whether a task is given by a file that describes it, instead of by a name that lm-eval knows."""
    return task.endswith((".yaml", ".yml"))


class LmEval(Frozen):
    """Tasks of lm-eval that show what the model forgets."""

    tasks: tuple[str, ...] = Field(
        (),
        fail_fast=True,
        description="Names of tasks, groups or tags that lm-eval knows (lm-eval ls tasks), or files of tasks (.yaml).",
    )
    limit: Count | None = Field(200, description="Most documents of each task, from its beginning; null: all.")
    num_fewshot: int | None = Field(
        None, ge=0, le=1000, description="Examples before each question; null: as many as the task says."
    )
    apply_chat_template: bool = Field(False, description="Whether prompts get the tokenizer's chat template.")

    @field_validator("tasks")
    @classmethod
    def _once_each(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        twice = sorted({task for task in tasks if tasks.count(task) > 1})
        if twice:
            raise ValueError(f"{twice[0]} is listed twice: list each task once")
        return tasks


class Eval(Frozen):
    """When and how the held-out samples are scored."""

    metrics: tuple[str, ...] = Field(
        ("loss",),
        fail_fast=True,
        description=f"{', '.join(METRICS)}, or package.module:function, which you write.",
    )
    eval_steps: Count | None = Field(None, description="Evaluate every this many steps, and at the start and the end.")
    eval_on_start: bool = Field(True, description="Evaluate before the first step.")
    general: Annotated[Sources, AfterValidator(_as_text)] | None = Field(
        None,
        description="General text, whose loss shows what the model forgets: a path, or sources as in data.eval "
        "(format: text by default). Scored before the first step and at each evaluation.",
    )
    lm_eval: LmEval = Field(
        default_factory=LmEval,
        description="Tasks of lm-eval, scored before the first step and at each evaluation. For causal-lm.",
    )
    early_stopping_patience: Count | None = Field(
        None,
        description="Consecutive evaluations without a better metric_for_best_model after which the run ends.",
    )
    early_stopping_threshold: float = Field(
        0.0,
        ge=0.0,
        le=1e9,
        description="For early_stopping_patience, a score must be better than the best one by more than this.",
    )
    per_device_eval_batch_size: Rows = Field(8, description="Most rows per worker in a forward pass of evaluation.")

    @model_validator(mode="after")
    def _no_threshold_without_patience(self) -> Eval:
        if self.early_stopping_threshold and self.early_stopping_patience is None:
            raise ValueError(
                "early_stopping_threshold needs early_stopping_patience: give it, or leave the threshold out"
            )
        return self

    def may_report(self, metric: str) -> bool:
        """Whether evaluations may report a metric. A user's function may return metrics of any name."""
        has_own = any(":" in name for name in self.metrics)
        harness = bool(self.lm_eval.tasks) and metric.removeprefix("eval_").startswith("lm_eval_")
        return has_own or harness or metric.removeprefix("eval_") in {"loss", *self.metrics}

    def with_absolute_paths(self, base: str) -> Eval:
        """Make paths absolute, relative to the directory or URL `base`."""
        tasks = tuple(absolute(task, base) if is_task_file(task) else task for task in self.lm_eval.tasks)
        harness = self.lm_eval.model_copy(update={"tasks": tasks})
        return self.model_copy(update={"general": absolute_sources(self.general, base), "lm_eval": harness})


class Checkpoint(Frozen):
    """When the training state is saved, and which checkpoints are kept."""

    save_steps: Count | None = Field(None, description="Save every this many steps; the last step is always saved.")
    save_minutes: float | None = Field(
        30.0, gt=0.0, le=1e7, description="Save every this many minutes; null turns it off."
    )
    save_total_limit: Rows = Field(2, description="Keep this many newest checkpoints, and the best one.")
    metric_for_best_model: str | None = Field(
        None, min_length=1, description="Held-out metric that decides which checkpoint is best, e.g. accuracy or loss."
    )
    greater_is_better: bool | None = Field(
        None, description="Whether more of that metric is better; default: by its name, such as false for loss."
    )
    load_best_model_at_end: bool = Field(False, description="Export the best checkpoint instead of the last state.")

    @model_validator(mode="after")
    def _the_best_has_a_metric(self) -> Checkpoint:
        if self.metric_for_best_model is None:
            for name in ("greater_is_better", "load_best_model_at_end"):
                if getattr(self, name):
                    raise ValueError(f"{name} needs metric_for_best_model, the metric that decides which is best")
        return self

    @property
    def best_metric(self) -> str | None:
        """Full name of the metric, eval_*."""
        return None if self.metric_for_best_model is None else full_name(self.metric_for_best_model)

    @property
    def greater_is_best(self) -> bool:
        """`greater_is_better`, or, if it is left out, the default for the metric's name."""
        return self.greater_is_better if self.greater_is_better is not None else not is_loss(str(self.best_metric))
