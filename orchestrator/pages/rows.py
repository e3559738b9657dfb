"""Output of `fleetune data show`: rows as the model sees them, with targets highlighted and samples separated."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs.data.quality.preview import ShownRow, ShownSample

_TARGET, _OFF = "\x1b[7m", "\x1b[0m"
_OPEN, _CLOSE = "\u00ab", "\u00bb"
TOKENS_SHOWN = 24


def rows_json(rows: list[ShownRow]) -> str:
    return json.dumps([asdict(row) for row in rows])


def rows_page(rows: list[ShownRow], colour: bool) -> str:
    """Format all rows, with a legend."""
    how = "in reverse video" if colour else f"in {_OPEN}{_CLOSE}"
    origin = "prepared data" if rows[0].prepared else "the first samples, because nothing is prepared yet"
    causal = rows[0].samples[0].label is None
    legend = f"rows of {origin}" + (f"; targets are {how}" if causal else "")
    return "\n\n".join([legend, *(_row(row, colour) for row in rows)])


def _row(row: ShownRow, colour: bool) -> str:
    tokens = sum(len(sample.tokens) for sample in row.samples)
    targets = sum(sum(sample.targets) for sample in row.samples)
    head = f"== row {row.number}: {tokens:,} tokens"
    if row.samples[0].label is None:
        many = "" if len(row.samples) == 1 else f", {len(row.samples)} samples"
        head += f", {targets:,} targets{many}"
    return "\n".join([head, *(_sample(place, sample, colour) for place, sample in enumerate(row.samples, 1))])


def _sample(place: int, sample: ShownSample, colour: bool) -> str:
    of = f" of source {sample.source}" if sample.source else ""
    label = f", label {sample.label}" if sample.label is not None else ""
    head = f"-- sample {place} (number {sample.number}{of}): {len(sample.tokens):,} tokens{label}"
    return "\n".join([head, _text(sample, colour), f"   ids: {_ids(sample)}"])


def _text(sample: ShownSample, colour: bool) -> str:
    """Return the text with runs of targets marked."""
    before, after = (_TARGET, _OFF) if colour else (_OPEN, _CLOSE)
    parts, inside = [], False
    for piece, target in zip(sample.pieces, sample.targets, strict=True):
        if target != inside:
            parts.append(before if target else after)
            inside = target
        parts.append(_printable(piece))
    if inside:
        parts.append(after)
    return "\n".join(f"   {line}" for line in "".join(parts).split("\n"))


def _printable(text: str) -> str:
    """Return the text without terminal control sequences."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)


def _ids(sample: ShownSample) -> str:
    """Return the first and last token ids. A star marks targets."""
    ids = [f"{token}{'*' if target else ''}" for token, target in zip(sample.tokens, sample.targets, strict=True)]
    if len(ids) > TOKENS_SHOWN:
        ids = [*ids[: TOKENS_SHOWN // 2], "...", *ids[-TOKENS_SHOWN // 2 :]]
    return " ".join(ids)
