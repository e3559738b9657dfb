"""Trials of a search as its rules see them: a state and scores, without runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from jobs.run.paths import JobPaths
from jobs.search.trial import State, Trial
from jobs.spec.finetune import Spec

_SPEC: Final = Spec.model_validate(
    {
        "model": {"path": "model", "task": "causal-lm"},
        "data": {"train": "rows.jsonl", "format": "text"},
        "storage_path": "runs",
    }
)


def trial_of(number: int, state: State, scores: Sequence[tuple[int, float]] = (), **more: Any) -> Trial:
    """Return a trial with these (step, score) pairs."""
    return Trial(number, {}, _SPEC, JobPaths(f"runs/{number}"), state=state, scores=list(scores), **more)
