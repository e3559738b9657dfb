"""docs/models.md is in the form that `bench.zoo` writes, and a verdict follows from the numbers."""

from __future__ import annotations

import math
import re
from pathlib import Path

from bench.zoo.page import HEADER, page, row
from bench.zoo.trial import Result, judged

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
OUTCOMES = ("trains", "refused", "failed", "not made")
PLAIN = [5.0, 4.0, 3.0, 2.0, 1.0]


def test_the_document_is_in_the_form_that_the_script_writes() -> None:
    text = DOCUMENT.read_text()
    rows = text[text.index(HEADER) :].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]
    assert {len(line) for line in cells} == {7}
    outcomes = [line[2].partition(":")[0] for line in cells]
    assert set(outcomes) <= set(OUTCOMES)
    said = re.search(r": (\d+) of (\d+) pairs of type and task: (.*)\.", text)
    assert said is not None and int(said[1]) == len(rows) <= int(said[2])
    assert said[3] == ", ".join(f"{outcomes.count(one)} {one}" for one in sorted(set(outcomes)))
    assert page([], 3).split("Seen with")[0] == text.split("Seen with")[0]


def test_a_row_says_what_was_seen() -> None:
    seen = Result("m", "causal-lm", "M", "trains", packed=False, workers=1e-7, resume=0.0, keys=True)
    assert row(seen) == "| `m` | `M` | trains | apart | 1e-07 | 0e+00 | same names |\n"
    bad = Result("m", "causal-lm", "M", "refused", reason="a | b\nc")
    assert row(bad) == "| `m` | `M` | refused: a / b c |  |  |  |  |\n"


def test_a_verdict_needs_equal_losses_and_equal_names() -> None:
    assert judged(PLAIN, PLAIN, True)["outcome"] == "trains"
    assert judged(PLAIN, PLAIN, False)["reason"] == "the export has other tensors than the source"
    assert judged([*PLAIN[:4], 1.01], PLAIN, True)["reason"] == "resume differs by 1.0e-02"
    assert judged([5.1, *PLAIN[1:]], PLAIN, True)["reason"] == "workers differs by 2.0e-02"
    assert judged(PLAIN[:4], PLAIN, True)["resume"] == math.inf
    assert judged([*PLAIN[:4], math.nan], PLAIN, True)["outcome"] == "failed"
