"""Turns the facts of all samples into findings, one function for each rule. Pure; numpy and pyarrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from cluster.text import first_line
from jobs.data.quality.duplicates import Pairs, chosen_to_compare, exact_duplicates, near_duplicates
from jobs.data.quality.report import Example, Finding, Severity

Numbers = npt.NDArray[np.int64]
EXAMPLES = 5
TRAIN, EVAL = 0, 1
ROLES = ("train", "eval")
_CUT_AT_SOURCE = (5, 0.005, 100)  # least number of such texts, least share of them, least characters of each
_MANY_CUT = 0.05  # share of truncated samples from which on the finding is a warning
_RARE = 0.02  # share of the most frequent class below which a class is rare


@dataclass(frozen=True)
class Facts:
    """All records of all sources: a table with FACTS_SCHEMA, and the source and role of each of its rows."""

    table: Any
    source: npt.NDArray[np.int32]  # number of the source
    records: tuple[int, ...]  # records of each source; a function may make none or several samples of a record
    role: npt.NDArray[np.int8]  # TRAIN or EVAL
    files: tuple[tuple[str, ...], ...]  # files of each source
    labels: tuple[str, ...] | None
    num_labels: int | None
    seq_len: int

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def good(self) -> Numbers:
        """Numbers of the records that are samples."""
        return np.flatnonzero(pc.is_null(self.table["reason"]).to_numpy()).astype(np.int64)

    @cached_property
    def bad(self) -> Numbers:
        return np.flatnonzero(pc.is_valid(self.table["reason"]).to_numpy()).astype(np.int64)

    def numbers(self, column: str) -> npt.NDArray[Any]:
        """Return a column of numbers, with 0 for null."""
        values: npt.NDArray[Any] = pc.fill_null(self.table[column], 0).to_numpy()
        return values

    def example(self, row: int, other: int | None = None, text: str | None = None) -> Example:
        file, line = self.where(row)
        other_file, other_line = self.where(other) if other is not None else (None, None)
        shown = text if text is not None else self.table["text"][int(row)].as_py() or ""
        return Example(file=file, line=line, text=shown, other_file=other_file, other_line=other_line)

    def where(self, row: int) -> tuple[str, int]:
        file = self.table["file"][int(row)].as_py()
        return self.files[int(self.source[row])][file], self.table["line"][int(row)].as_py()

    def finding(
        self,
        kind: str,
        severity: Severity,
        title: str,
        rows: Sequence[int] | Numbers,
        advice: str,
        of: int | None = None,
    ) -> Finding:
        examples = tuple(self.example(int(row)) for row in rows[:EXAMPLES])
        looked_at = len(self.good) if of is None else of
        return Finding(
            kind=kind, severity=severity, title=title, count=len(rows), of=looked_at, advice=advice, examples=examples
        )


def findings_of(facts: Facts) -> tuple[tuple[Finding, ...], int]:
    """Return all findings, the most severe first, and the number of samples compared for near-duplicates."""
    compared, near = _near(facts)
    rules = (_bad, _exact, _conflicts, _marks, _cut_at_source, _cut, _classes)
    found = [finding for rule in rules for finding in rule(facts)] + list(_near_findings(facts, near, compared))
    gravest = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(found, key=lambda finding: gravest[finding.severity])), compared


def _bad(facts: Facts) -> Iterator[Finding]:
    """Report records that cannot be used, grouped by the kind of reason."""
    groups: dict[str, list[int]] = {}
    reasons, kinds = facts.table["reason"].to_pylist(), facts.table["kind"].to_pylist()
    for row in facts.bad.tolist():
        groups.setdefault(kinds[row], []).append(row)
    for kind, rows in sorted(groups.items(), key=lambda group: -len(group[1])):
        examples = tuple(facts.example(row, text=first_line(reasons[row])) for row in rows[:EXAMPLES])
        fatal = facts.table["fatal"][rows[0]].as_py()
        advice = (
            "correct them or the spec: nothing is prepared while there is one"
            if fatal
            else ("correct or remove them; up to data.max_bad_fraction of a source are set aside")
        )
        yield Finding(
            kind=f"bad-row: {kind}",
            severity="error",
            title=kind,
            count=len(rows),
            of=sum(facts.records),
            advice=advice,
            examples=examples,
        )


def _exact(facts: Facts) -> Iterator[Finding]:
    good = facts.good
    for role in (TRAIN, EVAL):
        mine = facts.role[good] == role
        inside = exact_duplicates(facts.numbers("content")[good[mine]])
        if len(inside):
            yield _pairs_finding(
                facts,
                "exact-duplicates",
                f"exact duplicates within {ROLES[role]}",
                Pairs(good[mine][inside.later], good[mine][inside.earlier]),
                int(mine.sum()),
                "remove them: repeated samples weigh more, and are memorised",
            )
    yield from _leaks(facts, good)


def _leaks(facts: Facts, good: Numbers) -> Iterator[Finding]:
    """Report held-out samples that are also in train."""
    content, role = facts.numbers("content")[good], facts.role[good]
    of_train = np.unique(content[role == TRAIN])
    leaked = np.flatnonzero((role == EVAL) & np.isin(content, of_train))
    if len(leaked):
        train = np.flatnonzero(role == TRAIN)
        by_content = dict(zip(content[train][::-1].tolist(), train[::-1].tolist(), strict=True))
        earlier = np.array([by_content[int(content[row])] for row in leaked], np.int64)
        yield _pairs_finding(
            facts,
            "exact-duplicates-across",
            "samples of eval that are also in train",
            Pairs(good[leaked], good[earlier]),
            int((role == EVAL).sum()),
            "remove them from one side: the held-out metrics would be too good",
        )


def _pairs_finding(
    facts: Facts, kind: str, title: str, pairs: Pairs, of: int, advice: str, severity: Severity = "warning"
) -> Finding:
    examples = tuple(
        facts.example(int(later), int(earlier))
        for later, earlier in zip(pairs.later[:EXAMPLES], pairs.earlier[:EXAMPLES], strict=True)
    )
    return Finding(kind=kind, severity=severity, title=title, count=len(pairs), of=of, advice=advice, examples=examples)


def _near(facts: Facts) -> tuple[int, Pairs]:
    good = facts.good
    column = facts.table["signature"].combine_chunks()
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
    chosen = chosen_to_compare(facts.numbers("content")[good], lengths[good] > 0)
    rows = good[chosen]
    values = column.take(rows).flatten().to_numpy()
    signatures = values.reshape(len(rows), -1) if len(rows) else []
    return len(rows), near_duplicates(rows, list(signatures))


def _near_findings(facts: Facts, near: Pairs, compared: int) -> Iterator[Finding]:
    later, earlier = facts.role[near.later], facts.role[near.earlier]
    advice = "look at some: templates and boilerplate are fine, copies with small changes are not"
    for role in (TRAIN, EVAL):
        inside = (later == role) & (earlier == role)
        if inside.any():
            pairs = Pairs(near.later[inside], near.earlier[inside])
            title = f"near-duplicates within {ROLES[role]} (80 % of their sets of three words in common)"
            yield _pairs_finding(facts, "near-duplicates", title, pairs, compared, advice, "note")
    across = later != earlier
    if across.any():
        swapped = later[across] == TRAIN
        one, two = near.later[across], near.earlier[across]
        pairs = Pairs(np.where(swapped, two, one), np.where(swapped, one, two))
        yield _pairs_finding(
            facts,
            "near-duplicates-across",
            "samples of eval with near-duplicates in train",
            pairs,
            compared,
            "remove them from one side if they are copies: the held-out metrics would be too good",
            "warning",
        )


def _conflicts(facts: Facts) -> Iterator[Finding]:
    """Report equal texts with different labels."""
    if facts.num_labels is None:
        return
    good = facts.good
    labels = facts.numbers("label")[good]
    pairs = exact_duplicates(facts.numbers("content")[good])
    differ = labels[pairs.later] != labels[pairs.earlier]
    if differ.any():
        yield _pairs_finding(
            facts,
            "conflicting-labels",
            "equal texts with different labels",
            Pairs(good[pairs.later[differ]], good[pairs.earlier[differ]]),
            len(good),
            "decide on one label: no model can learn both",
        )


_MARKS: tuple[tuple[str, str, str], ...] = (  # kind, title, advice
    (
        "mojibake",
        "wrong encoding (UTF-8 that was read as Latin-1, as in \u00c3\u00a9)",
        "decode the source as UTF-8, and export it again",
    ),
    ("replacement-character", "characters that were lost in decoding (\ufffd)", "export the source again in UTF-8"),
    (
        "windows-1252",
        "wrong encoding (Windows-1252 that was read as Latin-1, as in \\x92 for an apostrophe)",
        "decode the source as Windows-1252, and export it again in UTF-8",
    ),
    ("control-characters", "control characters in a text", "remove them, or see where they come from"),
    ("nearly-empty", "texts of one or two characters", "remove them, or see whether it is the right column"),
    (
        "unknown-role",
        "turns of a role other than system, user, assistant and tool",
        "rename the roles: a template writes out any name",
    ),
    ("system-not-first", "a system turn that is not the first", "move it to the start"),
    (
        "turns-out-of-order",
        "two turns of user or of assistant in a row",
        "join them, or see whether a turn is missing",
    ),
    ("assistant-first", "dialogues that the assistant begins", "see whether the first turn is missing"),
    (
        "ends-without-answer",
        "dialogues that end without an answer",
        "the last turn teaches nothing: remove it, or see what is missing",
    ),
    ("empty-answer", "empty turns of the assistant", "remove them: the model would learn to say nothing"),
    ("empty-question", "empty turns of the user", "see what is missing"),
)


def _marks(facts: Facts) -> Iterator[Finding]:
    """Report problems that a single sample shows."""
    column = facts.table["marks"].combine_chunks()
    parents = pc.list_parent_indices(column).to_numpy()
    marks = np.array(column.flatten().to_pylist(), dtype=object)
    for mark, title, advice in _MARKS:
        rows = parents[marks == mark] if len(marks) else parents[:0]
        if len(rows):
            yield facts.finding(mark, "warning", title, rows, advice)


def _cut_at_source(facts: Facts) -> Iterator[Finding]:
    """Report many texts of exactly the greatest length that end in mid-sentence: they were truncated earlier."""
    least, share, chars_at_least = _CUT_AT_SOURCE
    good = facts.good
    chars, ends = facts.numbers("chars")[good], pc.fill_null(facts.table["open_end"], False).to_numpy()[good]
    for source in np.unique(facts.source[good]):
        mine = facts.source[good] == source
        most = int(chars[mine].max())
        rows = good[mine & (chars == most) & ends]
        if most >= chars_at_least and len(rows) >= max(least, share * int(mine.sum())):
            title = f"texts of exactly {most:,} characters that end in mid-sentence"
            advice = "they were probably cut when they were exported: export them whole"
            yield facts.finding("cut-at-source", "warning", title, rows, advice, int(mine.sum()))


def _cut(facts: Facts) -> Iterator[Finding]:
    rows = facts.good[facts.numbers("cut")[facts.good] > 0]
    if len(rows):
        severity: Severity = "warning" if len(rows) > _MANY_CUT * len(facts.good) else "note"
        tokens = int(facts.numbers("cut")[rows].sum())
        title = f"longer than data.seq_len ({facts.seq_len:,}), so cut by {tokens:,} tokens in all"
        longest = rows[np.argsort(-facts.numbers("tokens")[rows], kind="stable")]
        yield facts.finding("cut-by-seq-len", severity, title, longest, "raise data.seq_len, or shorten them")


def _classes(facts: Facts) -> Iterator[Finding]:
    if facts.num_labels is None or not len(facts.good):
        return
    counts, held = label_counts(facts, TRAIN), label_counts(facts, EVAL)
    rules: tuple[tuple[str, Severity, str, npt.NDArray[np.bool_], str], ...] = (
        (
            "absent-classes",
            "warning",
            "classes without a sample in train",
            counts == 0,
            "add samples of them, or take them out of data.labels",
        ),
        (
            "classes-not-in-eval",
            "warning",
            "classes without a sample in eval",
            (counts > 0) & (held == 0) & held.any(),
            "hold out more (data.eval_fraction): no metric says how well the model does on them",
        ),
        (
            "rare-classes",
            "note",
            "classes under 2 % of the most frequent one",
            (counts > 0) & (counts < _RARE * counts.max()),
            "use f1 in addition to accuracy, which rare classes hardly change",
        ),
    )
    for kind, severity, title, which, advice in rules:
        if names := [label_name(facts, int(number)) for number in np.flatnonzero(which)]:
            title, count, of = f"{title}: {', '.join(names[:10])}", len(names), len(counts)
            yield Finding(kind=kind, severity=severity, title=title, count=count, of=of, advice=advice)


def label_counts(facts: Facts, role: int) -> Numbers:
    """Count the samples of each class in a role; (num_labels,)."""
    rows = facts.good[facts.role[facts.good] == role]
    counts: Numbers = np.bincount(facts.numbers("label")[rows], minlength=facts.num_labels or 0)
    return counts


def label_name(facts: Facts, number: int) -> str:
    return facts.labels[number] if facts.labels and number < len(facts.labels) else str(number)
