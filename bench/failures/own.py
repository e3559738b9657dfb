"""Metric functions and a format, as a user would write them, with the mistakes of users."""

from __future__ import annotations

from typing import Any


def failing(given: Any) -> float:
    raise ValueError("no such column in my table")


def not_a_number(given: Any) -> float:
    return float("nan")


def no_sample(record: dict[str, Any]) -> dict[str, Any]:
    return {"text": record["no such key"]}
