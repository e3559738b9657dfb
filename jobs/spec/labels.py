"""Labels of a job, short facts that distinguish it. `--set`, `--sweep` and `vary` add one for each changed field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final, TypeVar, cast

from jobs.spec.command import CommandSpec
from jobs.spec.finetune import Spec
from jobs.spec.queue import LONGEST_LABEL, MOST_LABELS
from jobs.spec.sweep import SweepSpec

# Fields that get no label: values that may be secrets, fields with their own column in lists, and paths.
_UNLABELLED: Final = frozenset({"env", "queue", "name", "storage_path", "working_dir", "version", "kind"})

AnyOne = TypeVar("AnyOne", bound=Spec | CommandSpec | SweepSpec)


def labelled(spec: AnyOne, changes: Mapping[str, Any]) -> AnyOne:
    """Add a label for each changed field; labels that the spec already has are kept.

    Args:
        changes: new values by dotted name, as `{"train.learning_rate": 1e-5}`.
    """
    added = {name: label_value(value) for name, value in changes.items() if name.split(".")[0] not in _UNLABELLED}
    labels = dict(list({**spec.queue.labels, **added}.items())[:MOST_LABELS])
    if labels == spec.queue.labels:
        return spec
    update = {"queue": spec.queue.model_copy(update={"labels": labels})}
    return cast("AnyOne", spec.model_copy(update=update))


def label_value(value: Any) -> str:
    """Format a value on one line, in at most LONGEST_LABEL characters: `1e-05`, `[a, b]`, `none`."""
    if value is None:
        text = "none"
    elif isinstance(value, float):
        text = f"{value:.6g}"
    else:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…"
