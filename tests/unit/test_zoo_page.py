"""docs/models.md is in the form that `bench.zoo` writes, and a verdict follows from the numbers."""

from __future__ import annotations

import collections
import math
import re
from pathlib import Path

from bench.zoo.cases import Case
from bench.zoo.page import HEADER, page, row
from bench.zoo.trial import Result, judged

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"
OUTCOMES = ("trains", "warned", "refused", "failed", "not made")
PLAIN = [5.0, 4.0, 3.0, 2.0, 1.0]


def test_the_document_counts_its_own_rows() -> None:
    text = DOCUMENT.read_text()
    rows = text[text.index(HEADER) :].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in rows]
    assert {len(line) for line in cells} == {8}
    outcomes = collections.Counter(line[2].partition(":")[0] for line in cells)
    said: collections.Counter[str] = collections.Counter()
    for line in re.findall(r"^\* (?:causal-lm|sequence-classification): (.*)$", text, re.MULTILINE):
        said.update({outcome: int(count) for count, outcome in re.findall(r"(\d+) ([a-z ]+)", line)})
    assert said == outcomes and set(outcomes) <= {*OUTCOMES, "not tried"}
    assert page([], []).split("Seen with")[0] == text.split("Seen with")[0]


def test_what_was_not_tried_is_a_row() -> None:
    cases = [Case("a", "causal-lm", "A"), Case("b", "causal-lm", "B")]
    text = page([Result("a", "causal-lm", "A", "trains", code="1234abcd")], cases)
    assert "* causal-lm: 1 trains; 1 not tried\n" in text
    assert "| `b` | `B` | not tried |" in text and "| 1234abcd |" in text


def test_a_row_names_no_directory_of_the_machine_that_tried_it() -> None:
    reason = "cannot load the tokenizer in /caches/of-me/zoo/m-lm/model: ValueError"
    seen = Result("m", "causal-lm", "M", "refused", reason=reason)
    assert "refused: cannot load the tokenizer in model.path: ValueError |" in row(seen)


def test_a_row_says_what_was_seen() -> None:
    seen = Result("m", "causal-lm", "M", "trains", packed=False, alone=1e-7, resume=0.0, keys=True, code="c")
    assert row(seen) == "| `m` | `M` | trains | apart | 1e-07 | 0e+00 | same names | c |\n"
    bad = Result("m", "causal-lm", "M", "refused", reason="a | b\nc")
    assert row(bad) == "| `m` | `M` | refused: a / b c |  |  |  |  |  |\n"


def test_a_verdict_needs_equal_losses_and_equal_names() -> None:
    assert judged(PLAIN, PLAIN, True)["outcome"] == "trains"
    assert judged(PLAIN, PLAIN, False)["reason"] == "the export has other tensors than the source"
    assert judged([*PLAIN[:4], 1.01], PLAIN, True)["reason"] == "resume differs by 1.0e-02"
    assert judged([5.1, *PLAIN[1:]], PLAIN, True)["reason"] == "alone differs by 2.0e-02"
    assert judged(PLAIN[:4], PLAIN, True)["resume"] == math.inf
    assert judged([*PLAIN[:4], math.nan], PLAIN, True)["outcome"] == "failed"
