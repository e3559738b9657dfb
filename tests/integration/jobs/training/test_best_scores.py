"""Which evaluation counts as the best one, and what is kept of it."""

from __future__ import annotations

import dataclasses
import pathlib
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.run.checkpoints import Best
from jobs.run.paths import JobPaths
from jobs.spec.evaluation import Checkpoint
from jobs.spec.remedies import Remedies
from jobs.storage import files as storage
from jobs.training.checkpoint.writer import Checkpointer
from jobs.training.loop.saving import best_of, best_score, bests, set_aside
from jobs.training.loop.state import LoopState
from tests.support import tiny


def test_the_best_is_what_the_spec_calls_best() -> None:
    lower, higher = Checkpoint(metric_for_best_model="loss"), Checkpoint(metric_for_best_model="accuracy")
    state = LoopState(step=10, metrics={"eval_loss": 0.5, "eval_accuracy": 0.8}, evaluated_at=10)
    first = best_of(lower, state)
    kept = {"eval_loss": 0.5, "eval_accuracy": 0.8}
    assert first == Best(metric="eval_loss", greater_is_better=False, step=10, score=0.5, metrics=kept)
    worse = dataclasses.replace(state, step=20, evaluated_at=20, best=first, metrics={"eval_loss": 0.6})
    better = dataclasses.replace(worse, metrics={"eval_loss": 0.4})
    not_measured = dataclasses.replace(better, evaluated_at=10)
    no_number = dataclasses.replace(worse, metrics={"eval_loss": float("nan")})
    assert best_of(lower, worse) == best_of(lower, not_measured) == best_of(lower, no_number) == first
    assert best_of(lower, better) == Best(
        metric="eval_loss", greater_is_better=False, step=20, score=0.4, metrics={"eval_loss": 0.4}
    )
    # An attempt that goes by something else starts anew.
    assert best_of(higher, dataclasses.replace(state, best=first)) == Best(
        metric="eval_accuracy", greater_is_better=True, step=10, score=0.8, metrics=kept
    )
    assert best_of(Checkpoint(), state) is None


def test_the_best_score_keeps_its_confusion_matrix() -> None:
    rule = Checkpoint(metric_for_best_model="loss")
    state = LoopState(step=10, metrics={"eval_loss": 0.5}, evaluated_at=10, confusion=((3, 1), (2, 4)))
    best = best_of(rule, state)
    assert best is not None and Best.model_validate_json(best.model_dump_json()).confusion == ((3, 1), (2, 4))
    worse = dataclasses.replace(
        state, step=20, evaluated_at=20, metrics={"eval_loss": 0.6}, confusion=((4, 0), (6, 0)), best=best
    )
    assert best_of(rule, worse) == best


@pytest.mark.parametrize("better", [1, -1])
def test_early_stopping_counts_from_the_last_score_that_was_better_by_the_threshold(better: int) -> None:
    """As Hugging Face counts: each score is compared with the best one before it."""
    rule = Checkpoint(metric_for_best_model="score", greater_is_better=better > 0)
    state, counted = LoopState(), []
    for step, score in ((10, 0.0), (20, 0.5), (30, 0.55), (40, 0.2), (50, 0.6), (60, 0.8)):
        state = dataclasses.replace(state, step=step, evaluated_at=step, metrics={"eval_score": better * score})
        best = best_of(rule, state, 0.1)
        assert best is not None
        stored = Best.model_validate_json(best.model_dump_json())  # as in a checkpoint
        state = dataclasses.replace(state, best=stored)
        assert best_of(rule, state, 0.1) == stored, "the same score, seen again"
        counted.append((stored.step, stored.counted_from))
    assert counted == [(10, 10), (20, 20), (30, 20), (30, 20), (50, 20), (60, 60)]


def test_a_score_past_the_bound_on_forgetting_is_not_the_best(tmp_path: pathlib.Path) -> None:
    bound = {"max_general_loss_increase": 0.1}
    spec = tiny.spec_of(
        tmp_path, tmp_path, tmp_path, data__eval_fraction=0.1, eval={"general": "/g", "eval_steps": 10},
        checkpoint__metric_for_best_model="loss", remedies__forgetting=bound,
    )  # fmt: skip
    within = {"eval_loss": 0.5, "eval_general_loss": 4.3}
    past = {"eval_loss": 0.4, "eval_general_loss": 4.5}
    state = LoopState(step=10, metrics=within, evaluated_at=10, metrics_before={"eval_general_loss": 4.0})
    first = best_score(spec, state)
    assert first is not None and first.step == 10
    later = dataclasses.replace(state, step=20, evaluated_at=20, best=first, metrics=past)
    assert best_score(spec, later) == first
    unbound = spec.model_copy(update={"remedies": Remedies()})
    better = best_score(unbound, later)
    assert better is not None and better.step == 20
    assert best_score(spec, dataclasses.replace(later, best=better)) is None, "an earlier attempt had no bound"


def test_a_checkpoint_that_is_set_aside_already_stays(tmp_path: pathlib.Path) -> None:
    """The process was killed after it was moved, and before the run began again."""
    paths = JobPaths(str(tmp_path))
    for name in ("rank-0.safetensors", "commit.json"):
        storage.write_bytes(storage.join(paths.checkpoint(20), name), b"{}")
    writer: Any = SimpleNamespace(busy=False, _rank=0, _paths=paths)
    for _ in range(2):
        Checkpointer.set_aside(writer, 20)
        assert storage.list_names(paths.set_aside.checkpoint(20)) == ["commit.json", "rank-0.safetensors"]
        assert storage.list_names(paths.checkpoints) == ["set-aside"], (
            "an empty directory would look like an unfinished one"
        )


def test_one_past_the_present_bound_does_not_keep_its_place(tmp_path: pathlib.Path) -> None:
    spec = tiny.spec_of(
        tmp_path, tmp_path, tmp_path, data__eval_fraction=0.1, eval={"general": "/g", "eval_steps": 10},
        checkpoint__metric_for_best_model="loss", remedies__forgetting={"max_general_loss_increase": 0.05},
    )  # fmt: skip
    moved: list[int] = []
    checkpoints = SimpleNamespace(settle=lambda: None, set_aside=moved.append)
    run: Any = SimpleNamespace(job=SimpleNamespace(spec=spec), checkpoints=checkpoints)
    before = {"eval_general_loss": 4.0}
    old, new = (
        Best(metric="eval_loss", greater_is_better=False, step=step, score=score, metrics={"eval_general_loss": loss})
        for step, score, loss in ((10, 1.0, 4.3), (20, 1.1, 4.15))
    )
    assert set_aside(run, LoopState(metrics_before=before, set_aside=old), new) == new and moved == [20]
    within = old.model_copy(update={"metrics": {"eval_general_loss": 4.1}})
    assert set_aside(run, LoopState(metrics_before=before, set_aside=within), new) == within and moved == [20]


def test_the_best_score_of_before_a_new_beginning_counts_while_it_is_within_the_bound(tmp_path: pathlib.Path) -> None:
    spec = tiny.spec_of(
        tmp_path, tmp_path, tmp_path, data__eval_fraction=0.1, eval={"general": "/g", "eval_steps": 10},
        checkpoint__metric_for_best_model="loss", remedies__forgetting={"max_general_loss_increase": 0.1},
    )  # fmt: skip

    def scored(step: int, loss: float, general: float = 4.1, metric: str = "eval_loss") -> Best:
        metrics = {"eval_loss": loss, "eval_general_loss": general}
        return Best(metric=metric, greater_is_better=False, step=step, score=loss, metrics=metrics)

    now = scored(20, 0.5)
    state = LoopState(step=30, best=now, metrics_before={"eval_general_loss": 4.0})
    for aside, first in ((scored(10, 0.4), 10), (scored(10, 0.6), 20), (scored(10, 0.4, general=4.5), 20)):
        assert bests(spec, dataclasses.replace(state, set_aside=aside))[0].step == first
    other = scored(10, 0.4, metric="eval_accuracy")
    assert bests(spec, dataclasses.replace(state, set_aside=other)) == [now], "a resume has chosen another metric"
    assert bests(spec, dataclasses.replace(state, best=None)) == []
