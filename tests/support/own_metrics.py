"""Metric functions as a user would bring them."""

from __future__ import annotations

import os
import pathlib
from typing import Any


def share_right(given: Any) -> float:
    """The share of targets of a causal language model that it puts first, which is what `accuracy` is."""
    assert given.predictions.shape == given.label_ids.shape
    real = given.label_ids != -100
    return float((given.predictions == given.label_ids)[real].mean())


def failing(given: Any) -> float:
    raise ValueError("no such column in my table")


def broken(given: Any) -> float:
    """Raises, as a user's function may, and counts how often it was called."""
    with pathlib.Path(os.environ["BROKEN_METRIC_CALLS"]).open("a") as file:
        file.write("called\n")
    raise ValueError("no such column in my table")
