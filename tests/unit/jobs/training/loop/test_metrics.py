"""Held-out metrics from sums, and people's own functions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest

from cluster.errors import DataError, MetricFailed
from jobs.spec.evaluation import METRICS
from jobs.spec.finetune import Task
from jobs.training.loop.metrics import (
    MOST_CLASSES_SHOWN,
    ClassCounter,
    ClassCounts,
    EvalPrediction,
    Sums,
    apply_own,
    confusion_of,
    f1_score,
    metrics_of,
    own_functions,
    with_own,
)

TWO = ClassCounts.of(np.array([[3, 1], [2, 4]]))
NONE = ClassCounts.of(np.zeros((0, 0), dtype=np.int64))
SUMS = Sums(loss=20.0, targets=10, correct=7, rows=4, exact_rows=1, classes=TWO)
GIVEN = EvalPrediction(predictions=np.array([[0.1, 0.9], [0.8, 0.2]]), label_ids=np.array([1, 1]))


def test_the_loss_is_always_reported_and_the_rest_when_asked() -> None:
    assert metrics_of(("accuracy",), SUMS) == {"eval_loss": 2.0, "eval_accuracy": 0.7, "eval_majority_share": 0.6}
    every = metrics_of(("perplexity", "f1", "exact_match"), SUMS)
    assert every["eval_perplexity"] == pytest.approx(math.exp(2.0))
    assert every["eval_exact_match"] == 0.25
    assert set(every) == {"eval_loss", "eval_perplexity", "eval_f1", "eval_exact_match"}


def test_every_metric_that_a_spec_may_name_is_computed_and_is_for_a_task_that_there_is() -> None:
    assert {f"eval_{name}" for name in METRICS} <= set(metrics_of(tuple(METRICS), SUMS))
    assert {task for tasks in METRICS.values() for task in tasks} == set(get_args(Task))


def test_accuracy_without_classes_has_no_majority() -> None:
    of_tokens = replace(SUMS, classes=NONE)
    assert metrics_of(("accuracy",), of_tokens) == {"eval_loss": 2.0, "eval_accuracy": 0.7}
    assert confusion_of(SUMS) == ((3, 1), (2, 4)) and confusion_of(of_tokens) is None


def test_f1_of_two_classes_is_that_of_class_1() -> None:
    precision, recall = 4 / 5, 4 / 6
    assert f1_score(TWO) == pytest.approx(2 * precision * recall / (precision + recall))


def test_f1_of_more_classes_is_the_mean_over_them() -> None:
    counts = ClassCounts.of(np.array([[2, 0, 0], [0, 0, 2], [0, 0, 0]]))
    assert f1_score(counts) == pytest.approx((1.0 + 0.0 + 0.0) / 3)
    perfect_without_a_class = ClassCounts.of(np.diag([2, 0, 3, 1]))
    assert f1_score(perfect_without_a_class) == 1.0
    assert f1_score(NONE) == 0.0


@pytest.mark.parametrize(("labels", "cells"), [(MOST_CLASSES_SHOWN, MOST_CLASSES_SHOWN**2), (2**20, 3 * 2**20)])
def test_many_classes_are_counted_without_a_matrix(labels: int, cells: int) -> None:
    true, predicted = np.array([0, 0, 1, 49, 49]), np.array([0, 1, 1, 49, 0])
    counter = ClassCounter(labels)
    assert counter.cells == cells
    counts = np.zeros(cells, np.int64)
    np.add.at(counts, counter.cells_of(true, predicted), 1)
    found = counter.counts(counts)
    assert (found.true.sum(), found.predicted.sum(), found.hits.tolist()[:2], found.hits[49]) == (5, 5, [1, 1], 1)
    sums = replace(SUMS, targets=5, classes=found)
    assert metrics_of(("accuracy",), sums)["eval_majority_share"] == 0.4
    assert f1_score(found) == pytest.approx((0.5 + 2 / 3 + 2 / 3) / 3)
    assert (confusion_of(sums) is None) == (labels > MOST_CLASSES_SHOWN)


def accuracy(given: Any) -> float:
    return float((given.predictions.argmax(-1) == given.label_ids).mean())


def two_numbers(given: Any) -> dict[str, Any]:
    return {"a": 1, "eval_b": np.float32(0.5)}


def wrong_type(given: Any) -> Any:
    return "high"


def raising(given: Any) -> float:
    raise KeyError("column")


def test_an_own_function_gives_a_number_or_several() -> None:
    assert apply_own("m:accuracy", accuracy, GIVEN) == {"eval_accuracy": 0.5}
    assert apply_own("m:two_numbers", two_numbers, GIVEN) == {"eval_a": 1.0, "eval_b": 0.5}


@pytest.mark.parametrize(("function", "says"), [(wrong_type, "could not convert"), (raising, "KeyError: 'column'")])
def test_an_own_function_that_fails_is_named(function: Any, says: str) -> None:
    with pytest.raises(DataError, match=f"my.module:f failed.*{says}"):
        apply_own("my.module:f", function, GIVEN)


def test_a_key_that_is_not_text_is_named() -> None:
    with pytest.raises(DataError, match=r"my\.module:f returned the key 3, expected text"):
        apply_own("my.module:f", lambda given: {3: 2.0}, GIVEN)


def test_own_functions_are_imported_by_name() -> None:
    expected: dict[str, Any] = {"math:sqrt": math.sqrt}
    assert own_functions(("loss", "math:sqrt")) == expected
    with pytest.raises(DataError, match="cannot import math:nothing"):
        own_functions(("math:nothing",))


def test_a_function_of_two_arguments_is_told_that_it_gets_one() -> None:
    with pytest.raises(DataError, match=r"math:atan2 must take one argument.*predictions and label_ids: def atan2"):
        own_functions(("math:atan2",))


def test_a_function_may_not_replace_what_is_computed() -> None:
    computed = {"eval_loss": 2.0}
    assert with_own(computed, {"eval_bleu": 1.0}) == {"eval_loss": 2.0, "eval_bleu": 1.0}
    for name in ("eval_loss", "eval_general_loss", "eval_lm_eval_arc_acc"):
        with pytest.raises(MetricFailed, match=f"returns {name}, which Fleetune computes itself"):
            with_own(computed, {"eval_bleu": 1.0, name: 5.0})
