"""Formats metrics for people. Light to import: the training loop, the terminal and the queue's pages share it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

ACCURACY: Final = "eval_accuracy"
# Share of held-out samples in the most frequent class: the accuracy of a model that always predicts that class.
MAJORITY: Final = "eval_majority_share"


def metric_words(metrics: Mapping[str, Any], shape: str = "{:.4g}", prefix: str = "") -> Iterator[str]:
    """Yield a text such as `accuracy 0.822 (majority class 0.5)` for each metric that has a value.

    Args:
        prefix: text before the name of a held-out metric.
    """
    together = ACCURACY in metrics and metrics.get(MAJORITY) is not None
    for name, value in metrics.items():
        if value is None or (together and name == MAJORITY):
            continue
        shown = "train loss" if name == "loss" else prefix + name.removeprefix("eval_")
        baseline = f" (majority class {shape.format(metrics[MAJORITY])})" if together and name == ACCURACY else ""
        yield f"{shown} {shape.format(value)}{baseline}"
