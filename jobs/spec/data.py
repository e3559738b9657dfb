"""The spec's section `data`: where the samples come from, how a record is read, how it becomes rows of tokens."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Final, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from jobs.frozen import Frozen
from jobs.storage import locations as location

BuiltinFormat = Literal["text", "chat", "prompt-completion", "instruction", "classification"]
BUILTIN_FORMATS: Final[tuple[str, ...]] = get_args(BuiltinFormat)
MOST_EPOCHS: Final = 1e6
OWN_FUNCTION: Final = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z")


def _known_format(name: str) -> str:
    if name not in BUILTIN_FORMATS and not OWN_FUNCTION.match(name):
        near = difflib.get_close_matches(name.lower().replace("_", "-"), BUILTIN_FORMATS, n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(
            f"must be one of {', '.join(BUILTIN_FORMATS)}, or package.module:function, but is {name!r}{hint}"
        )
    return name


Format = Annotated[str, AfterValidator(_known_format)]


def checked_path(path: str) -> str:
    """Raises ValueError for what is neither a path nor a URL. Which protocols are allowed depends on the process."""
    if (wrong := location.form_problem(path)) is not None:
        raise ValueError(wrong)
    return path


StoragePath = Annotated[str, AfterValidator(checked_path)]


class Columns(Frozen):
    """The names of the columns (or JSON keys) that the format reads."""

    text: str = Field("text", description="Column with the text, for formats `text` and `classification`.")
    label: str = Field("label", description="Column with the label, for format `classification`.")
    messages: str = Field("messages", description="Column with a list of {role, content}, for format `chat`.")
    prompt: str = Field("prompt", description="Column with what is given, for format `prompt-completion`.")
    completion: str = Field("completion", description="Column with what is learned, for format `prompt-completion`.")
    instruction: str = Field("instruction", description="Column with the task, for format `instruction`.")
    input: str = Field("input", description="Column with what the task is about, for `instruction`; may be missing.")
    output: str = Field("output", description="Column with the answer, for format `instruction`.")


class Source(Frozen):
    """One source of samples. A bare path stands for a source with nothing else."""

    path: StoragePath = Field(min_length=1, description="File, directory or glob; a local path or an allowed URL.")
    weight: float | None = Field(
        None,
        gt=0.0,
        le=1e9,
        description="Share of the rows of training that come from here, beside the others' weights.",
    )
    max_epochs: float | None = Field(
        None,
        gt=0.0,
        le=MOST_EPOCHS,
        description="Most passes over this source in the whole run; then the others go on without it.",
    )
    format: Format | None = Field(None, description="How its records are read; left out, as data.format says.")
    columns: Columns | None = Field(None, description="Names of its columns; left out, as data.columns says.")


def _sources(value: object) -> object:
    """A path is a source, and a source is a list of one."""
    if isinstance(value, str | dict):
        value = [value]
    if isinstance(value, list | tuple):
        return tuple({"path": one} if isinstance(one, str) else one for one in value)
    return value


Sources = Annotated[tuple[Source, ...], BeforeValidator(_sources), Field(min_length=1)]


class Data(Frozen):
    """Where the samples come from and how they become rows of tokens."""

    train: Sources = Field(
        description="The training samples: file, directory, glob or URL (JSONL, CSV, Parquet, Arrow), or a list of "
        "sources, each a path or {path, weight, max_epochs, format, columns}."
    )
    eval: Sources | None = Field(None, description="The held-out samples, named in the same way.")
    eval_fraction: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="Share of `train` to hold out when no `eval` is given; by content, so duplicates stay together.",
    )
    format: Format = Field(
        description="How a record is read: text, chat, prompt-completion, instruction, classification, or "
        "package.module:function of your own."
    )
    columns: Columns = Field(default_factory=Columns, description="Names of the columns that the format reads.")
    labels: tuple[str, ...] | None = Field(
        None,
        min_length=2,
        fail_fast=True,
        description="Names of the classes in the order of their ids, for classification.",
    )
    loss_on: Literal["completion", "all"] = Field(
        "completion",
        description="Which tokens are targets: what the assistant or the completion says, or all. Text always is.",
    )
    seq_len: int = Field(1024, ge=8, le=1_048_576, description="Longest row in tokens; longer samples are cut.")
    packing: bool = Field(True, description="Put several short samples in one row (never for classification).")
    max_bad_fraction: float = Field(
        0.01, ge=0.0, lt=1.0, description="Most of a source's records that may be set aside because they are unusable."
    )

    @model_validator(mode="after")
    def _one_source_of_held_out_samples(self) -> Data:
        if self.eval is not None and self.eval_fraction is not None:
            raise ValueError("eval and eval_fraction are both given: drop one of them")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels repeats a name: {list(self.labels)}")
        return self

    @model_validator(mode="after")
    def _weights_for_all_sources_or_for_none(self) -> Data:
        weighed = [source.weight is not None for source in self.train]
        if any(weighed) and not all(weighed):
            without = next(source.path for source in self.train if source.weight is None)
            raise ValueError(f"train: {without} has no weight, but others have: give every source one, or none")
        if not self.mixed and any(source.max_epochs for source in self.train):
            raise ValueError("train: max_epochs needs a weight for every source (alone, num_train_epochs says it)")
        if any(source.weight or source.max_epochs for source in self.eval or ()):
            raise ValueError("eval: weight and max_epochs are for train: every held-out sample is scored once")
        return self

    @property
    def mixed(self) -> bool:
        """Whether training draws from the sources by weight; else every sample comes once an epoch."""
        return all(source.weight is not None for source in self.train)

    @property
    def has_eval(self) -> bool:
        """Whether there are held-out samples."""
        return self.eval is not None or self.eval_fraction is not None

    def format_of(self, source: Source) -> str:
        return source.format or self.format

    def columns_of(self, source: Source) -> Columns:
        return source.columns or self.columns

    @property
    def formats(self) -> frozenset[str]:
        """The formats of all sources."""
        return frozenset(self.format_of(source) for source in (*self.train, *(self.eval or ())))


def source_words(source: Source) -> str:
    """`general.jsonl (weight 0.2, max_epochs 2)`."""
    said = source.model_dump(exclude_none=True, exclude={"path", "columns"})
    changed = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in said.items()]
    columns = source.columns.model_dump(exclude_defaults=True) if source.columns else {}
    changed += [f"columns.{role} {column}" for role, column in columns.items()]
    return source.path + (f" ({', '.join(changed)})" if changed else "")
