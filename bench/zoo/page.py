"""docs/models.md: a table of what `python -m bench.zoo` has seen."""

from __future__ import annotations

import collections
import importlib.metadata

from bench.zoo.trial import Result

HEADER = "| type | class | outcome | packed | 2 workers | resume | export |"
RULE = "|---|---|---|---|---|---|---|"
_MOST_CHARACTERS = 160


def page(results: list[Result], known: int) -> str:
    """The document; `known` is the number of architectures that transformers has for the two tasks."""
    counts = collections.Counter(result.outcome for result in results)
    said = ", ".join(f"{counts[outcome]} {outcome}" for outcome in sorted(counts))
    version = importlib.metadata.version("transformers")
    return f"""# Model types

`python -m bench.zoo --docs` writes this page. It builds each architecture tiny, with random weights, and trains it
through the product's own path: two workers that stop after 3 steps, one that goes on to step 5 and exports. Losses are
compared with those of a plain PyTorch loop (1e-4), and the export's tensors with the source's.

Seen with transformers {version}: {len(results)} of {known} pairs of type and task: {said}.
`packed: apart` means that samples are trained in rows of their own. A difference is the largest relative one of any
loss.

{HEADER}
{RULE}
{"".join(row(result) for result in results)}"""


def row(result: Result) -> str:
    """One line of the table."""
    packed = {None: "", True: "yes", False: "apart"}[result.packed]
    keys = {None: "", True: "same names", False: "other names"}[result.keys]
    reason = " ".join((result.reason or "").replace("|", "/").split())[:_MOST_CHARACTERS]
    outcome = f"{result.outcome}: {reason}" if reason else result.outcome
    cells = [
        f"`{result.model_type}`", f"`{result.class_name}`", outcome, packed,
        _difference(result.workers), _difference(result.resume), keys,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def _difference(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"
