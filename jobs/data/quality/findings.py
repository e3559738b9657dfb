"""Turns the facts of all samples into findings, one function for each rule. Pure; numpy and pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from cluster.text import first_line, many
from jobs.data.quality.duplicates import Pairs, chosen_to_compare, exact_duplicates, near_duplicates
from jobs.data.quality.facts import UNKNOWN_SHARE
from jobs.data.quality.report import Example, Finding, Severity

Numbers = npt.NDArray[np.int64]
EXAMPLES = 5
TRAIN, EVAL = 0, 1
ROLES = ("train", "eval")
_CUT_AT_SOURCE = (5, 0.005, 100)  # least number of such texts, least share of them, least characters of each
_MANY_CUT = 0.05  # share of truncated samples from which on the finding is a warning
_MANY_UNKNOWN = 0.01  # the finding is a warning if more than this share of samples has unknown tokens
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

    def of_role(self, role: int) -> Numbers:
        """Return the numbers of the samples of a role."""
        rows: Numbers = self.good[self.role[self.good] == role]
        return rows

    def marked(self, mark: str) -> Numbers:
        """Return the numbers of the samples with a mark."""
        column = self.table["marks"].combine_chunks()
        marks = np.array(column.flatten().to_pylist(), dtype=object)
        parents: Numbers = pc.list_parent_indices(column).to_numpy()
        return parents[marks == mark] if len(marks) else parents[:0]

    def example(self, row: int, other: int | None = None) -> Example:
        """Show a record: the start of a sample, or why the record cannot be used."""
        file, line = self.where(row)
        other_file, other_line = self.where(other) if other is not None else (None, None)
        shown = first_line(self.table["reason"][int(row)].as_py() or "") or self.table["text"][int(row)].as_py() or ""
        return Example(file=file, line=line, text=shown, other_file=other_file, other_line=other_line)

    def where(self, row: int) -> tuple[str, int]:
        file = self.table["file"][int(row)].as_py()
        return self.files[int(self.source[row])][file], self.table["line"][int(row)].as_py()


def findings_of(facts: Facts) -> tuple[tuple[Finding, ...], int]:
    """Return all findings, the most severe first, and the number of samples compared for near-duplicates."""
    compared, near = _near(facts)
    rules = (_bad, _exact, _leaks, _conflicts, _marks, _unknown, _cut_at_source, _cut, _divided, _classes)
    found = [finding for rule in rules for finding in rule(facts)] + list(_near_findings(facts, near, compared))
    gravest = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(found, key=lambda finding: gravest[finding.severity])), compared


def _finding(
    facts: Facts, kind: str, severity: Severity, title: str, found: Numbers | Pairs, of: int, advice: str
) -> Iterator[Finding]:
    """Yield a finding about these records or pairs of records, with examples; nothing if there are none."""
    rows, others = (found.later, found.earlier) if isinstance(found, Pairs) else (found, [None] * EXAMPLES)
    examples = tuple(map(facts.example, rows[:EXAMPLES], others[:EXAMPLES]))
    if examples:
        count = len(found)
        yield Finding(kind=kind, severity=severity, title=title, count=count, of=of, advice=advice, examples=examples)


def _bad(facts: Facts) -> Iterator[Finding]:
    """Report records that cannot be used, grouped by the kind of reason."""
    groups: dict[str, list[int]] = {}
    kinds = facts.table["kind"].to_pylist()
    for row in facts.bad.tolist():
        groups.setdefault(kinds[row], []).append(row)
    for kind, rows in sorted(groups.items(), key=lambda group: -len(group[1])):
        fatal = facts.table["fatal"][rows[0]].as_py()
        advice = (
            "correct them or the spec: nothing is prepared while there is one"
            if fatal
            else ("correct or remove them; up to data.max_bad_fraction of a source are set aside")
        )
        yield from _finding(facts, f"bad-row: {kind}", "error", kind, np.array(rows), sum(facts.records), advice)


def _duplicates(facts: Facts, rows: Numbers) -> Pairs:
    """Find the samples among `rows` that repeat an earlier one of them exactly."""
    found = exact_duplicates(facts.numbers("content")[rows])
    return Pairs(rows[found.later], rows[found.earlier])


def _exact(facts: Facts) -> Iterator[Finding]:
    for role in (TRAIN, EVAL):
        rows, title = facts.of_role(role), f"exact duplicates within {ROLES[role]}"
        advice = "remove them: repeated samples weigh more, and are memorised"
        yield from _finding(facts, "exact-duplicates", "warning", title, _duplicates(facts, rows), len(rows), advice)


def _leaks(facts: Facts) -> Iterator[Finding]:
    """Report held-out samples that are also in train."""
    held = facts.of_role(EVAL)
    pairs = _duplicates(facts, np.concatenate([facts.of_role(TRAIN), held]))
    leaked = pairs.where(facts.role[pairs.later] != facts.role[pairs.earlier])
    title = "samples of eval that are also in train"
    advice = "remove them from one side: the held-out metrics would be too good"
    yield from _finding(facts, "exact-duplicates-across", "warning", title, leaked, len(held), advice)


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
        inside = near.where((later == role) & (earlier == role))
        title = f"near-duplicates within {ROLES[role]} (80 % of their sets of three words in common)"
        yield from _finding(facts, "near-duplicates", "note", title, inside, compared, advice)
    across = near.where(later != earlier)
    swapped = facts.role[across.later] == TRAIN
    held, trained = (np.where(which, across.earlier, across.later) for which in (swapped, ~swapped))
    title = "samples of eval with near-duplicates in train"
    advice = "remove them from one side if they are copies: the held-out metrics would be too good"
    yield from _finding(facts, "near-duplicates-across", "warning", title, Pairs(held, trained), compared, advice)


def _conflicts(facts: Facts) -> Iterator[Finding]:
    """Report equal texts with different labels."""
    if facts.num_labels is not None:
        labels, pairs = facts.numbers("label"), _duplicates(facts, facts.good)
        differ = pairs.where(labels[pairs.later] != labels[pairs.earlier])
        title, advice = "equal texts with different labels", "decide on one label: no model can learn both"
        yield from _finding(facts, "conflicting-labels", "warning", title, differ, len(facts.good), advice)


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
    (
        "joined-records",
        "fields of CSV or TSV files that look like several records between two quotes",
        "double the quotes that are part of a text, or convert the file as docs/data.md says",
    ),
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
    for mark, title, advice in _MARKS:
        yield from _finding(facts, mark, "warning", title, facts.marked(mark), len(facts.good), advice)


def _unknown(facts: Facts) -> Iterator[Finding]:
    rows, samples = facts.marked("unknown-tokens"), len(facts.good)
    severity: Severity = "warning" if len(rows) > _MANY_UNKNOWN * samples else "note"
    title = f"texts with {UNKNOWN_SHARE:.0%} or more unknown tokens"
    advice = "the model cannot tell unknown words apart: take a model for their language or script"
    yield from _finding(facts, "unknown-tokens", severity, title, rows, samples, advice)


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
            yield from _finding(facts, "cut-at-source", "warning", title, rows, int(mine.sum()), advice)


def _cut(facts: Facts) -> Iterator[Finding]:
    samples = len(facts.good)
    rows = facts.good[facts.numbers("cut")[facts.good] > 0]
    severity: Severity = "warning" if len(rows) > _MANY_CUT * samples else "note"
    tokens = int(facts.numbers("cut")[rows].sum())
    title = f"longer than data.seq_len ({facts.seq_len:,}), so cut by {many(tokens, 'token')} in all"
    longest = rows[np.argsort(-facts.numbers("tokens")[rows], kind="stable")]
    yield from _finding(
        facts, "cut-by-seq-len", severity, title, longest, samples, "raise data.seq_len, or shorten them"
    )


def _divided(facts: Facts) -> Iterator[Finding]:
    """Report dialogues that became several rows, which have more tokens than the dialogues."""
    rows = facts.marked("divided")
    parts = pc.list_value_length(facts.table["lengths"]).to_numpy()[rows]
    title = f"dialogues divided into {many(int(parts.sum()), 'row')}, so that each answer has its reasoning"
    advice = "the chat template leaves out earlier reasoning; give answers that need not be learned weight 0"
    yield from _finding(facts, "divided", "note", title, rows, len(facts.good), advice)


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
            yield Finding(kind=kind, severity=severity, title=title, count=count, of=of, unit="class", advice=advice)


def label_counts(facts: Facts, role: int) -> Numbers:
    """Count the samples of each class in a role; (num_labels,)."""
    counts: Numbers = np.bincount(facts.numbers("label")[facts.of_role(role)], minlength=facts.num_labels or 0)
    return counts


def label_name(facts: Facts, number: int) -> str:
    return facts.labels[number] if facts.labels and number < len(facts.labels) else str(number)
