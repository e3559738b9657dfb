"""docs/models.md: a table of what `python -m bench.zoo` has seen."""

from __future__ import annotations

import collections
import importlib.metadata
import re

from bench.zoo.cases import Case
from bench.zoo.trial import Result

HEADER = "| type | class | outcome | packed | 1 worker | 2 workers | export | code |"
RULE = "|---|---|---|---|---|---|---|---|"
_MOST_CHARACTERS = 160
_A_MODEL_DIR = re.compile(r"(?:/[\w.+-]+)+/model\b")  # the path on the machine that ran the trial


def page(results: list[Result], known: list[Case]) -> str:
    """The document; `known` are all cases, of which those without a result were not tried."""
    seen = {(result.model_type, result.task): result for result in results}
    lines = [row(seen.get((case.model_type, case.task)) or _not_tried(case)) for case in known]
    version = importlib.metadata.version("transformers")
    return f"""# Model types

`python -m bench.zoo --docs` writes this page. It builds a tiny version of each architecture with random weights and
trains it like any other run: one worker stops after 3 steps, then two workers continue to step 5 and export. It
compares the losses with those of a plain PyTorch loop (1e-4), the export's tensors with the source's, and the export
with one made from the checkpoint. A pass tries the types in random order.

Seen with transformers {version}:

{counts(results, known)}
* `trains`: with nothing but defaults. `refused`: before workers start, with the reason.
* `warned`: it trains, losses differ from plain PyTorch, and a warning says why.
* `failed`: after workers have started. `not made`: the tiny model does not train in plain PyTorch either.
* `packed: apart`: each sample has a separate row. A difference is the largest relative difference of any loss.
* `code`: a digest of the code that was tried. Rows with other digests are older.

{HEADER}
{RULE}
{"".join(lines)}"""


def counts(results: list[Result], known: list[Case]) -> str:
    """Lines of a list: how many of each outcome there are, task by task."""
    lines = []
    for task in sorted({case.task for case in known}):
        found = collections.Counter(result.outcome for result in results if result.task == task)
        missing = sum(case.task == task for case in known) - sum(found.values())
        said = ", ".join(f"{found[outcome]} {outcome}" for outcome in sorted(found))
        lines.append(f"* {task}: {said or 'nothing'}; {missing} not tried\n")
    return "".join(lines)


def _not_tried(case: Case) -> Result:
    return Result(case.model_type, case.task, case.class_name, "not tried")


def row(result: Result) -> str:
    """One line of the table."""
    packed = {None: "", True: "yes", False: "apart"}[result.packed]
    keys = {None: "", True: "same names", False: "other names"}[result.keys]
    reason = _A_MODEL_DIR.sub("model.path", " ".join((result.reason or "").replace("|", "/").split()))
    reason = reason[:_MOST_CHARACTERS]
    outcome = f"{result.outcome}: {reason}" if reason else result.outcome
    cells = [
        f"`{result.model_type}`", f"`{result.class_name}`", outcome, packed,
        _difference(result.alone), _difference(result.resume), keys, result.code,
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |\n"


def _difference(value: float | None) -> str:
    return "" if value is None else f"{value:.0e}"
