"""Held-out metrics: built-in ones from sums over workers, and the user's functions of all predictions."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import DataError, MetricFailed
from jobs.run.metric_names import ACCURACY, MAJORITY, is_general, is_harness
from jobs.spec.evaluation import METRICS

Confusion = tuple[tuple[int, ...], ...]  # true by predicted
MOST_CLASSES_SHOWN = 50  # larger confusion matrices are hard to read, and are neither counted nor kept


@dataclass(frozen=True)
class EvalPrediction:
    """The argument of a user's metric function. The fields are named as in Hugging Face's class of this name."""

    predictions: npt.NDArray[Any]  # classification: (n, classes) logits; causal-lm: (n, targets) predicted ids
    label_ids: npt.NDArray[np.int64]  # classification: (n,) classes; causal-lm: (n, targets), -100 without a target


@dataclass(frozen=True)
class ClassCounts:
    """Counts of rows by class, each (classes,); empty for causal-lm.

    Attributes:
        confusion: (classes, classes) true by predicted; None for more than MOST_CLASSES_SHOWN classes, because its size
            is the square of their number.
    """

    true: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]
    hits: npt.NDArray[np.int64]  # true and predicted
    confusion: npt.NDArray[np.int64] | None = None

    @classmethod
    def of(cls, confusion: npt.NDArray[np.int64]) -> ClassCounts:
        """Make the counts from a confusion matrix, true by predicted."""
        return cls(confusion.sum(1), confusion.sum(0), np.diag(confusion), confusion)


class ClassCounter:
    """Counts rows by class in one array of cells, so that the counts of several workers can be added."""

    def __init__(self, num_labels: int) -> None:
        self._labels = num_labels
        self._whole = num_labels <= MOST_CLASSES_SHOWN
        self.cells = num_labels * (num_labels if self._whole else 3)

    def cells_of(self, true: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the cells to increase: one for each row with a confusion matrix, else two, or three for a hit."""
        if self._whole:
            return true * self._labels + predicted
        hits = true[true == predicted]
        return np.concatenate([true, predicted + self._labels, hits + 2 * self._labels])

    def counts(self, cells: npt.NDArray[np.int64]) -> ClassCounts:
        """Return the counts. `cells`: the array of cells, (self.cells,)."""
        if self._whole:
            return ClassCounts.of(cells.reshape(self._labels, self._labels))
        return ClassCounts(*cells.reshape(3, self._labels))


@dataclass(frozen=True)
class Sums:
    """Sums over the held-out rows. The sums of several workers are added."""

    loss: float
    targets: int
    correct: int  # targets with the highest logit
    rows: int
    exact_rows: int  # rows in which every target has the highest logit
    classes: ClassCounts


def metrics_of(names: tuple[str, ...], sums: Sums) -> dict[str, float]:
    """Compute the requested built-in metrics as eval_*, always with the loss; accuracy over classes has a baseline."""
    loss = sums.loss / max(sums.targets, 1)
    values = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "accuracy": sums.correct / max(sums.targets, 1),
        "exact_match": sums.exact_rows / max(sums.rows, 1),
        "f1": f1_score(sums.classes),
    }
    found = {f"eval_{name}": values[name] for name in METRICS if name == "loss" or name in names}
    if ACCURACY in found and sums.classes.true.size:
        found[MAJORITY] = float(sums.classes.true.max()) / max(sums.targets, 1)
    return found


def confusion_of(sums: Sums) -> Confusion | None:
    """Return the confusion matrix as plain numbers; None without classes or with more than MOST_CLASSES_SHOWN."""
    confusion = sums.classes.confusion
    if confusion is None or not len(confusion):
        return None
    return tuple(tuple(row) for row in confusion.tolist())


def f1_score(classes: ClassCounts) -> float:
    """Return F1 of class 1 for two classes, else the unweighted mean over classes (macro).

    As in scikit-learn, classes that neither occur nor are predicted do not count.
    """
    seen = classes.true + classes.predicted
    scores = 2 * classes.hits / np.maximum(seen, 1)
    if len(scores) == 2:
        return float(scores[1])
    return float(scores[seen > 0].mean()) if seen.any() else 0.0


def own_functions(names: tuple[str, ...]) -> dict[str, Callable[[EvalPrediction], Any]]:
    """Import the functions among `names`.

    Raises:
        DataError: a module or function does not exist, or the function does not take one argument.
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
        if not _takes_one(found[name]):
            raise DataError(
                f"eval.metrics: {name} must take one argument, which has the fields predictions and label_ids: "
                f"def {function}(result)"
            )
    return found


def _takes_one(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # some functions in C have no signature
        return True
    return True


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
        DataError: the function raised, or returned a key that is not text or something that is not a number.
    """
    short = name.rpartition(":")[2]
    try:
        result = function(given)
        values = result if isinstance(result, Mapping) else {short: result}
        wrong = [key for key in values if not isinstance(key, str)]
        found = {f"eval_{str(key).removeprefix('eval_')}": float(value) for key, value in values.items()}
    except Exception as error:
        raise DataError(f"eval.metrics: {name} failed: {type(error).__name__}: {error}") from error
    if wrong:
        raise DataError(f"eval.metrics: {name} returned the key {wrong[0]!r}, expected text")
    return found
