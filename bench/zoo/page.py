"""docs/models.md: a table of what `python -m bench.zoo` has seen."""

from __future__ import annotations

from bench.zoo.trial import Result


def page(results: list[Result]) -> str:
    return ""
