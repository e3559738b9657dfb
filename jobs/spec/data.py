"""The section `data` of a spec: where samples come from, how records are read, and how they become rows."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from cluster.text import did_you_mean
from jobs.frozen import Frozen
from jobs.spec.bounds import Epochs
from jobs.spec.references import absolute
from jobs.storage import locations as location

BuiltinFormat = Literal["text", "chat", "prompt-completion", "instruction", "classification"]
BUILTIN_FORMATS: Final[tuple[str, ...]] = get_args(BuiltinFormat)
TEXT_SUFFIXES: Final = (".jsonl", ".ndjson", ".csv", ".tsv", ".txt", ".json")
DATA_SUFFIXES: Final = (*TEXT_SUFFIXES, *(f"{suffix}.gz" for suffix in TEXT_SUFFIXES), ".parquet", ".arrow")
OWN_FUNCTION: Final = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*\Z")


def _known_format(name: str) -> str:
    if name not in BUILTIN_FORMATS and not OWN_FUNCTION.match(name):
        hint = did_you_mean(name.replace("_", "-"), BUILTIN_FORMATS)
        raise ValueError(
            f"must be one of {', '.join(BUILTIN_FORMATS)}, or package.module:function, but is {name!r}{hint}"
        )
    return name


Format = Annotated[str, AfterValidator(_known_format)]


def checked_path(path: str) -> str:
    """Return the path. Raises ValueError if it is neither a path nor a URL. The URL's protocol is not checked here."""
    if (wrong := location.form_problem(path)) is not None:
        raise ValueError(wrong)
    return path


StoragePath = Annotated[str, AfterValidator(checked_path)]


class Columns(Frozen):
    """The names of the columns (or JSON keys) that the format reads."""

    text: str = Field("text", description="Column with the text, for formats `text` and `classification`.")
    label: str = Field("label", description="Column with the label, for format `classification`.")
    messages: str = Field("messages", description="Column with a list of {role, content}, for format `chat`.")
    prompt: str = Field("prompt", description="Column with the prompt, for format `prompt-completion`.")
    completion: str = Field("completion", description="Column with the completion, for format `prompt-completion`.")
    instruction: str = Field("instruction", description="Column with the task, for format `instruction`.")
    input: str = Field("input", description="Column with what the task is about, for `instruction`; may be missing.")
    output: str = Field("output", description="Column with the answer, for format `instruction`.")


class Source(Frozen):
    """One source of samples. In a spec, a bare path is a source without other settings."""

    path: StoragePath = Field(min_length=1, description="File, directory or glob; a local path or an allowed URL.")
    weight: float | None = Field(
        None,
        gt=0.0,
        le=1e9,
        description="Share of the training rows that this source gives, relative to the other sources' weights.",
    )
    max_epochs: Epochs | None = Field(
        None,
        description="Most passes over this source in the whole run; after them, only the other sources are used.",
    )
    replay: bool = Field(
        False,
        description="General text against forgetting: action raise_replay of `remedies.forgetting` raises its weight.",
    )
    format: Format | None = Field(None, description="How records of this source are read; default: data.format.")
    columns: Columns | None = Field(None, description="Names of this source's columns; default: data.columns.")


def _sources(value: object) -> object:
    """Accept a path for a source, and one source for a list of sources."""
    if isinstance(value, str | dict):
        value = [value]
    if isinstance(value, list | tuple):
        return tuple({"path": one} if isinstance(one, str) else one for one in value)
    return value


_Written = str | Source | Annotated[tuple[str | Source, ...], Field(min_length=1)]  # what a file may have, for editors
Sources = Annotated[tuple[Source, ...], Field(min_length=1), BeforeValidator(_sources, json_schema_input_type=_Written)]


class Data(Frozen):
    """Where the samples come from and how they become rows of tokens."""

    train: Sources = Field(
        description="The training samples: file, directory, glob or URL (JSONL, CSV, Parquet, Arrow), or a list of "
        "sources, each a path or {path, weight, max_epochs, replay, format, columns}."
    )
    eval: Sources | None = Field(None, description="The held-out samples; takes the same values as `train`.")
    eval_fraction: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="Share of `train` to hold out when `eval` is not given. Duplicates stay on the same side.",
    )
    format: Format = Field(
        description="How a record is read: text, chat, prompt-completion, instruction, classification, or "
        "package.module:function, which you write."
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
        description="Which tokens are targets: assistant turns or the completion, or all. In format text, always all.",
    )
    seq_len: int = Field(1024, ge=8, le=1_048_576, description="Longest row in tokens; longer samples are truncated.")
    packing: bool = Field(True, description="Put several short samples in one row (never for classification).")
    max_bad_fraction: float = Field(
        0.01, ge=0.0, lt=1.0, description="Largest share of a source's records that may be set aside as unusable."
    )

    @model_validator(mode="after")
    def _held_out_samples_and_labels_are_given_once(self) -> Data:
        if self.eval is not None and self.eval_fraction is not None:
            raise ValueError("eval and eval_fraction are both given: drop one of them")
        if self.labels is not None and len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels repeats a name: {list(self.labels)}")
        spaced = next((name for name in self.labels or () if name != name.strip()), None)
        if spaced is not None:
            raise ValueError(
                f"labels: {spaced!r} begins or ends with a space, but the labels of records are read without such "
                "spaces: write the name without them"
            )
        return self

    @model_validator(mode="after")
    def _weights_for_all_sources_or_for_none(self) -> Data:
        weighed = [source.weight is not None for source in self.train]
        if any(weighed) and not all(weighed):
            without = next(source.path for source in self.train if source.weight is None)
            raise ValueError(f"train: {without} has no weight, but others do: give every source a weight, or none")

        if not self.mixed and any(source.max_epochs for source in self.train):
            raise ValueError("train: max_epochs needs a weight for every source. Without weights, use num_train_epochs")
        if any(source.weight or source.max_epochs for source in self.eval or ()):
            raise ValueError("eval: weight and max_epochs are for train: every held-out sample is scored once")
        if any(source.replay for source in self.eval or ()):
            raise ValueError("eval: replay is for train: it is about how often a source is trained on")
        if not self.mixed and any(source.replay for source in self.train):
            raise ValueError("train: replay needs a weight for every source")
        return self

    @property
    def mixed(self) -> bool:
        """Whether training draws from the sources by weight. If not, every sample is used once in each epoch."""
        return all(source.weight is not None for source in self.train)

    @property
    def has_eval(self) -> bool:
        """Whether there are held-out samples."""
        return self.eval is not None or self.eval_fraction is not None

    def format_of(self, source: Source) -> str:
        return source.format or self.format

    def columns_of(self, source: Source) -> Columns:
        return source.columns or self.columns


def numbered(sources: Sequence[tuple[str, Source]]) -> Iterator[tuple[str, Source]]:
    """Name each source by its field, with its number if the field has several: `data.train`, or `data.train[1]`."""
    for field, same in itertools.groupby(sources, lambda one: one[0]):
        of_field = [source for _, source in same]
        for number, source in enumerate(of_field):
            yield field if len(of_field) == 1 else f"{field}[{number}]", source


def format_source(source: Source) -> str:
    """Format a source for people: `general.jsonl (weight 0.2, max_epochs 2)`."""
    said = source.model_dump(exclude_none=True, exclude={"path", "columns", "replay"})
    changed = [f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in said.items()]
    changed += ["replay"] if source.replay else []
    columns = source.columns.model_dump(exclude_defaults=True) if source.columns else {}
    changed += [f"columns.{role} {column}" for role, column in columns.items()]
    return source.path + (f" ({', '.join(changed)})" if changed else "")


def absolute_sources(sources: Sources | None, base: str) -> Sources | None:
    """Make the paths of sources absolute, relative to the directory or URL `base`."""
    if sources is None:
        return None
    return tuple(source.model_copy(update={"path": absolute(source.path, base)}) for source in sources)
