"""The end of a run and its page: which state was exported, and the gain of the task against general text."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from cluster.text import many
from jobs.run.outcome import Outcome, Status, write_outcome
from jobs.run.record import open_run
from jobs.run.summary import describe_run
from jobs.spec.finetune import Spec
from orchestrator.pages.show import ending, prepared_page, run_page

BEFORE = {"eval_loss": 3.0, "eval_general_loss": 4.0}
AFTER = {"loss": 1.0, "eval_loss": 1.5, "eval_general_loss": 4.4}
WITHIN = {"eval_loss": 1.8, "eval_general_loss": 4.04}
MIX = "the loss on general text rose by 10.0%. To mix the model with its base: fleetune export"


def outcome(**changes: Any) -> Outcome:
    values = {"step": 20, "metrics": AFTER, "evaluated_step": 20, "metrics_before": BEFORE, "model_path": "/model"}
    values |= {"status": Status.SUCCEEDED, "ended_at": datetime.datetime.now(datetime.UTC)}
    return Outcome.model_validate(values | changes)


def page(folder: Path, ended: Outcome, bound: float | None = None) -> str:
    """The page of a run with this outcome."""
    spec = Spec.model_validate(
        {
            "model": {"path": "/m", "task": "causal-lm"},
            "data": {"train": "/d", "eval": "/e", "format": "text"},
            "eval": {"general": "/g", "eval_steps": 5},
            "checkpoint": {"metric_for_best_model": "loss"},
            "remedies": {"forgetting": {"max_general_loss_increase": bound}},
            "storage_path": str(folder),
        }
    )
    paths = open_run(spec)
    write_outcome(paths, ended)
    return run_page(describe_run(paths.root))


def row(text: str, name: str) -> str | None:
    """The second column of a row; None without the row."""
    found = [line.removeprefix(name).strip() for line in text.splitlines() if line.startswith(f"{name}  ")]
    return found[0] if found else None


def test_gain_and_loss_are_those_of_the_state_that_was_exported(tmp_path: Path) -> None:
    for text in (ending(outcome(), "/run"), page(tmp_path, outcome())):
        assert row(text, "trade-off") == "held-out loss 3 -> 1.5 (-50.0%), general loss 4 -> 4.4 (+10.0%)"
        assert row(text, "exported") is None
    earlier = outcome(exported_step=15, exported_metrics=WITHIN)
    for text in (ending(earlier, "/run"), page(tmp_path, earlier)):
        assert row(text, "trade-off") == "held-out loss 3 -> 1.8 (-40.0%), general loss 4 -> 4.04 (+1.0%)"
        assert row(text, "exported") == "the checkpoint of step 15: loss 1.8  general_loss 4.04"
        assert "loss 1.5" in str(row(text, "after step 20")), "the last evaluation stays"


@pytest.mark.parametrize(("bound", "offered"), [(None, True), (0.05, True), (0.2, False)])
def test_a_model_that_is_past_the_bound_may_be_mixed_with_its_base(
    tmp_path: Path, bound: float | None, offered: bool
) -> None:
    for text in (ending(outcome(), "/run", bound=bound), page(tmp_path, outcome(), bound)):
        assert (row(text, "forgetting") or "").startswith(MIX) is offered
    within = outcome(exported_step=15, exported_metrics=WITHIN)
    assert row(ending(within, "/run", bound=bound), "forgetting") is None
    failed = outcome(status=Status.FAILED, model_path=None)
    assert row(ending(failed, "/run"), "forgetting") is row(page(tmp_path, failed), "forgetting") is None


def test_a_run_without_general_text_has_no_such_rows() -> None:
    text = ending(outcome(metrics_before={"eval_loss": 3.0}, metrics={"eval_loss": 1.5}), "/run")
    assert row(text, "trade-off") is row(text, "forgetting") is None


def test_one_of_a_thing_is_no_plural() -> None:
    spec = Spec.model_validate(
        {"model": {"path": "/m", "task": "causal-lm"}, "data": {"train": "/d", "format": "text"}, "storage_path": "/s"}
    )
    one = {"samples": 1, "rows": 1, "tokens": 1, "targets": 1}
    text = prepared_page({"root": "/p", "records": 2, "bad_rows": 1, "train": one}, spec)
    assert row(text, "set aside") == "1 bad record, listed in bad_rows.jsonl of their source"
    assert str(row(text, "train")).startswith("1 sample in 1 row, ") and text.endswith("1 token, 1 target")
    assert many(2, "process") == "2 processes"
