"""Metrics as people read them. Light to import: shared by the training loop, the terminal and the queue's pages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

ACCURACY: Final = "eval_accuracy"
# Share of the held-out samples that are in their most frequent class: the accuracy of always answering that class.
MAJORITY: Final = "eval_majority_share"


def metric_words(metrics: Mapping[str, Any], shape: str = "{:.4g}", prefix: str = "") -> Iterator[str]:
    """Yield `accuracy 0.822 (majority class 0.5)` and so on, for each metric that has a value.

    Args:
        prefix: stands before the name of a held-out metric.
    """
    together = ACCURACY in metrics and metrics.get(MAJORITY) is not None
    for name, value in metrics.items():
        if value is None or (together and name == MAJORITY):
            continue
        shown = "train loss" if name == "loss" else prefix + name.removeprefix("eval_")
        baseline = f" (majority class {shape.format(metrics[MAJORITY])})" if together and name == ACCURACY else ""
        yield f"{shown} {shape.format(value)}{baseline}"
