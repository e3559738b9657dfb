"""Held-out metrics: built-in ones from sums over workers, and the user's functions of all predictions."""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from cluster.errors import DataError, MetricFailed
from jobs.run.metric_names import ACCURACY, MAJORITY, is_general, is_harness
from jobs.spec.evaluation import METRICS

Confusion = tuple[tuple[int, ...], ...]  # true by predicted
MOST_CLASSES_SHOWN = 50  # larger confusion matrices are hard to read and are not kept


@dataclass(frozen=True)
class EvalPrediction:
    """The argument of a user's metric function. The fields are named as in Hugging Face's class of this name."""

    predictions: npt.NDArray[Any]  # classification: (n, classes) logits; causal-lm: (n, targets) predicted ids
    label_ids: npt.NDArray[np.int64]  # classification: (n,) classes; causal-lm: (n, targets), -100 without a target


@dataclass(frozen=True)
class Sums:
    """Sums over the held-out rows. The sums of several workers are added."""

    loss: float
    targets: int
    correct: int  # targets with the highest logit
    rows: int
    exact_rows: int  # rows in which every target has the highest logit
    confusion: npt.NDArray[np.int64]  # (classes, classes) true by predicted; (0, 0) for causal-lm


def metrics_of(names: tuple[str, ...], sums: Sums) -> dict[str, float]:
    """Compute the requested built-in metrics as eval_*, always with the loss; accuracy over classes has a baseline."""
    loss = sums.loss / max(sums.targets, 1)
    values = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": sums.correct / max(sums.targets, 1),
        "exact_match": sums.exact_rows / max(sums.rows, 1),
        "f1": f1_score(sums.confusion),
    }
    found = {f"eval_{name}": values[name] for name in METRICS if name == "loss" or name in names}
    if ACCURACY in found and sums.confusion.size:
        found[MAJORITY] = float(sums.confusion.sum(1).max()) / max(sums.targets, 1)
    return found


def confusion_of(sums: Sums) -> Confusion | None:
    """Return the confusion matrix as plain numbers; None without classes or with more than MOST_CLASSES_SHOWN."""
    if not 0 < len(sums.confusion) <= MOST_CLASSES_SHOWN:
        return None
    return tuple(tuple(row) for row in sums.confusion.tolist())


def f1_score(confusion: npt.NDArray[np.int64]) -> float:
    """Return F1 of class 1 for two classes, else the unweighted mean over classes (macro).

    As in scikit-learn, classes that neither occur nor are predicted do not count.

    Args:
        confusion: (classes, classes) counts, true by predicted.
    """
    if not confusion.size:
        return 0.0
    hits = np.diag(confusion)
    seen = confusion.sum(0) + confusion.sum(1)
    scores = 2 * hits / np.maximum(seen, 1)
    if len(scores) == 2:
        return float(scores[1])
    return float(scores[seen > 0].mean()) if seen.any() else 0.0


def own_functions(names: tuple[str, ...]) -> dict[str, Callable[[EvalPrediction], Any]]:
    """Import the functions among `names`.

    Raises:
        DataError: a module or function does not exist.
    """
    found = {}
    for name in names:
        if name in METRICS:
            continue
        module, _, function = name.partition(":")
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        try:
            found[name] = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise DataError(f"eval.metrics: cannot import {name} on a worker: {error}") from error
    return found


def with_own(computed: dict[str, float], own: dict[str, float]) -> dict[str, float]:
    """Add the metrics of the user's functions. Raises MetricFailed: one of them has the name of a computed metric."""
    taken = [name for name in own if name in computed or is_general(name) or is_harness(name)]
    if taken:
        raise MetricFailed(
            f"eval.metrics: a function returns {', '.join(taken)}, which Fleetune computes itself: give it another name"
        )
    return computed | own


def apply_own(name: str, function: Callable[[EvalPrediction], Any], given: EvalPrediction) -> dict[str, float]:
    """Call a user's metric function.

    Returns:
        eval_<function's name>, or eval_<key> for each key if it returns a mapping.

    Raises:
        DataError: the function raised, or returned something that is not a number.
    """
    short = name.rpartition(":")[2]
    try:
        result = function(given)
        values = cast(Mapping[str, Any], result) if isinstance(result, Mapping) else {short: result}
        return {f"eval_{key.removeprefix('eval_')}": float(value) for key, value in values.items()}
    except Exception as error:
        raise DataError(f"eval.metrics: {name} failed: {type(error).__name__}: {error}") from error
