"""The output of `fleetune data check`: a DataReport as plain text, with the verdict first; and of `fleetune data show`.

The latter prints rows as the model sees them, with targets highlighted and samples separated.
"""

from __future__ import annotations

import bisect
import datetime
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from operator import itemgetter
from typing import TYPE_CHECKING

from cluster.text import byte_size, compact, many, percent
from jobs.data.quality.report import NEARLY_EQUAL, DataReport, Example, Finding, Histogram, LabelCount, SourceReport
from orchestrator.pages.svg import format_bin
from orchestrator.pages.tables import aligned, cells, padded, shortened, shortened_within, shown, wrapped

if TYPE_CHECKING:
    from jobs.data.quality.preview import ShownRow, ShownSample

NARROWEST = 60
SEVERITIES = ("error", "warning", "note")
ROLES = ("train", "eval")
SOURCE_HEAD = ("source", "path", "format", "files", "size", "records", "bad", "samples", "tokens", "cut", "weight")
SOURCE_WORDS = ("source", "path", "format")  # columns with text; the others are numbers

_EXAMPLES, _SOURCES, _LONGEST, _BINS = 3, 12, 5, 14
_MOST_FREQUENT, _RAREST = 8, 4
_BAR = 32  # most cells
_NUMBERS = ("records", "bad", "samples", "tokens", "cut")
_HIDDEN = ((), ("format",), ("format", "files", "size", "weight"), ("format", "files", "size", "weight", *_NUMBERS[:2]))
_EIGHTHS = " ▏▎▍▌▋▊▉"
_TARGET, _OFF = "\x1b[7m", "\x1b[0m"
_OPEN, _CLOSE = "\u00ab", "\u00bb"
TOKENS_SHOWN = 24


def page(report: DataReport, width: int = 100, html: str | None = None) -> str:
    """Format the report in lines of at most `width` cells (60 or more), except for the paths at the end.

    Args:
        html: path of the page with all examples, if it was written.
    """
    width = max(width, NARROWEST)
    names = short_names(report)
    sections = (
        wrapped(verdict(report), width),
        aligned([(name, shown(text)) for name, text in total_rows(report)]),
        _sources(report.sources, width),
        [line for finding in by_severity(report.findings) for line in _finding(finding, names, width)],
        _lengths(report, width),
        _labels(report.labels, width),
        _longest(report, names, width),
        packing_lines(report),
    )
    ends = (("bad records", report.bad_rows_file), ("page", html))
    fitting = [[shortened(line, width) for line in section] for section in sections]
    files = [f"{name.ljust(11)}  {shown(path)}" for name, path in ends if path]
    return "\n\n".join("\n".join(section) for section in [*fitting, files] if section)


# --- words


def verdict(report: DataReport) -> str:
    """Return the verdict as one line."""
    counts = Counter[str](finding.severity for finding in report.findings)
    found = ", ".join(many(counts[name], name) for name in SEVERITIES if counts[name])
    if report.blocked:
        return f"errors: the data cannot be prepared: {report.blocked}"
    if report.verdict == "errors":
        return f"{found or 'errors'}; preparation would leave out the bad records"
    if report.verdict == "warnings":
        return found or "warnings"
    return "ok: no problem was found" + (f" ({found})" if found else "")


def total_rows(report: DataReport) -> list[tuple[str, str]]:
    """Return (name, text) of each total."""
    at = report.created_at.astimezone(datetime.UTC)
    split = f"{report.train_samples:,} train, {report.eval_samples:,} eval"
    rows = [
        ("data", f"{report.name}, checked {at:%Y-%m-%d %H:%M} UTC, fingerprint {report.fingerprint[:16]}"),
        ("samples", f"{report.samples:,} of {many(report.records, 'record')}: {split}"),
    ]
    if bad := sum(source.bad for source in report.sources):
        share = percent(bad, sum(source.records for source in report.sources))
        rows.append(("bad", f"{many(bad, 'record')} ({share}; {100 * report.max_bad_fraction:g} % is allowed)"))
    if report.tokens:
        cut = sum(source.cut_tokens for source in report.sources)
        more = f", after {many(cut, 'token')} were cut at seq_len {report.seq_len:,}" if cut else ""
        rows.append(("tokens", f"{report.tokens:,}{more}"))
        rows.append(("targets", f"{report.targets:,} ({percent(report.targets, report.tokens)} of the tokens)"))
    if 0 < report.near_duplicates_looked_at < report.samples:
        of = f"{report.near_duplicates_looked_at:,} of {many(report.samples, 'sample')}"
        rows.append(("compared", f"{of}, to find near-duplicates; the others are copies, too short, or too many"))
    return rows


def source_rows(sources: Sequence[SourceReport], number: Callable[[int], str] = "{:,}".format) -> list[list[str]]:
    """Return cells in the order of SOURCE_HEAD."""
    roles = Counter(_role(source) for source in sources)
    return [
        [
            _role(source) if roles[_role(source)] == 1 else source.where.removeprefix("data."),
            source.path,
            source.format,
            number(source.files),
            byte_size(source.bytes),
            *map(number, (source.records, source.bad, source.samples, source.tokens, source.cut_samples)),
            "" if source.weight is None else f"{source.weight:g}",
        ]
        for source in sources
    ]


def _role(source: SourceReport) -> str:
    return source.where.removeprefix("data.").partition("[")[0]


def format_share(finding: Finding) -> str:
    """Format a share, as in `1,204 of 80,000 records (1.5 %)`; '': nothing was counted."""
    if not finding.of:
        return many(finding.count, finding.unit) if finding.count else ""
    return f"{finding.count:,} of {many(finding.of, finding.unit)} ({percent(finding.count, finding.of)})"


def by_severity(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def format_place(example: Example, names: Mapping[str, str], kind: str, width: int) -> str:
    """Format a place as `file:line`; for a duplicate as `file:line = other:line`. About `width` cells at most."""
    if example.other_file is None:
        return shortened_within(location(example.file, example.line, names), width)
    both = ((example.file, example.line), (example.other_file, example.other_line or 0))
    each = [shortened_within(location(file, line, names), width // 2) for file, line in both]
    return ("{} ≈ {}" if kind in NEARLY_EQUAL else "{} = {}").format(*each)


def location(file: str, line: int, names: Mapping[str, str]) -> str:
    return f"{names.get(file, file)}:{line}" if line else names.get(file, file)


def packing_lines(report: DataReport) -> list[str]:
    if (packing := report.packing) is None:
        return []
    full = f"{percent(packing.density)} full"
    if packing.packed:
        return [f"packed: {many(packing.rows, 'row')} of {packing.seq_len:,}, {full}"]
    rows = f"{many(packing.rows, 'row')} of at most {packing.seq_len:,}"
    return [f"not packed: {rows}, padded to the longest of their batch: {full}"]


def short_names(report: DataReport) -> dict[str, str]:
    """Shorten the path of each named file to the shortest end that no other named file has."""
    examples = [example for finding in report.findings for example in finding.examples]
    files = {file for one in examples for file in (one.file, one.other_file) if file}
    files |= {sample.file for sample in report.longest}
    parts = {file: file.split("/") for file in files}
    ends = {file: ["/".join(of[-count:]) for count in range(1, len(of) + 1)] for file, of in parts.items()}
    seen = Counter(itertools.chain.from_iterable(ends.values()))
    return {file: next((end for end in options if seen[end] == 1), file) for file, options in ends.items()}


# --- sections


def _sources(sources: Sequence[SourceReport], width: int) -> list[str]:
    if not sources:
        return []
    more = [f"… and {many(len(sources) - _SOURCES, 'more source')}"] if len(sources) > _SOURCES else []
    variants = itertools.product(_HIDDEN, ("{:,}".format, compact))
    tables = (_source_lines(source_rows(sources[:_SOURCES], number), hidden, width) for hidden, number in variants)
    return [*next(filter(None, tables)), *more]


def _source_lines(rows: list[list[str]], hidden: tuple[str, ...], width: int) -> list[str]:
    """Return the table of sources; empty if the paths would be cut too short."""
    table = [
        list(SOURCE_HEAD),
        *([shortened(row[0], 14), row[1], shortened_within(row[2], 18), *row[3:]] for row in rows),
    ]
    kept = [at for at, name in enumerate(SOURCE_HEAD) if name not in hidden and any(row[at] for row in table[1:])]
    room = width - sum(max(cells(row[at]) for row in table) + 2 for at in kept if at != 1)
    if room < min(max(cells(shown(row[1])) for row in rows), 16):
        return []
    lines = [[shortened_within(row[at], room) if at == 1 else row[at] for at in kept] for row in table]
    return aligned(lines, sum(SOURCE_HEAD[at] in SOURCE_WORDS for at in kept))


def _finding(finding: Finding, names: Mapping[str, str], width: int) -> list[str]:
    indent = " " * 9
    share = format_share(finding)
    title = finding.title + (f": {share}" if share else "")
    lines = wrapped(title, width, finding.severity.ljust(9), indent)
    if finding.advice:
        lines += wrapped(finding.advice, width, indent, indent)
    examples = finding.examples[:_EXAMPLES]
    places = [format_place(one, names, finding.kind, width // 2) for one in examples]
    room = width - 13 - max(map(cells, places), default=0)
    texts = [shortened(one.text, max(room, 1)) for one in examples]
    return lines + aligned(list(zip(places, texts, strict=True)), 2, indent + "  ")


def _lengths(report: DataReport, width: int) -> list[str]:
    found = bins_by_role(report)
    if not found:
        return []
    beside = len(found) == 2 and width >= 80
    each = (width - 4) // 2 if beside else width
    blocks = [_histogram(role, bins, report.seq_len, each) for role, bins in found.items()]
    lines = [line for block in blocks for line in block]
    if beside:
        pairs = itertools.zip_longest(*blocks, fillvalue="")
        lines = [f"{padded(left, each)}    {right}".rstrip() for left, right in pairs]
    quantiles = quantile_rows(report)
    return [*lines, "", *aligned(quantiles, words=1)] if quantiles else lines


def _histogram(role: str, bins: Histogram, seq_len: int, width: int) -> list[str]:
    bins = merged(bins, _BINS, seq_len)
    edges, counts = bins.edges, bins.counts
    labels = [format_bin(low, high) for low, high in itertools.pairwise(edges)]
    highest, label_width = max(counts), max(map(len, labels))
    room = min(width - label_width - 4 - len(f"{highest:,}"), _BAR)
    lines = [
        f"{label.rjust(label_width)}  {bar(count / highest, room)}  {f'{count:,}' if count else ''}".rstrip()
        for label, count in zip(labels, counts, strict=True)
    ]
    at = bisect.bisect_left(edges[:-1], seq_len)
    within = " (within the row above)" if at and edges[at - 1] < seq_len < edges[at] else ""
    return [f"tokens per sample, {role}", *lines[:at], f"╌╌╌ seq_len {seq_len:,}{within} ╌╌╌", *lines[at:]]


def bins_by_role(report: DataReport) -> dict[str, Histogram]:
    """Return the bins of each role that has samples, without empty ones at both ends."""
    found = {}
    for role, bins in report.lengths.items():
        if there := [index for index, count in enumerate(bins.counts) if count]:
            first, last = there[0], there[-1]
            found[role] = Histogram(edges=bins.edges[first : last + 2], counts=bins.counts[first : last + 1])
    return found


def merged(bins: Histogram, most: int, edge: float) -> Histogram:
    """Merge neighbours until there are about `most` bins. If `edge` is an edge of a bin, it stays one."""
    step = math.ceil(len(bins.counts) / most)
    first = bins.edges.index(edge) % step if edge in bins.edges else 0
    bounds = sorted({0, *range(first, len(bins.counts), step), len(bins.counts)})
    counts = (sum(bins.counts[low:high]) for low, high in itertools.pairwise(bounds))
    return Histogram(edges=tuple(bins.edges[at] for at in bounds), counts=tuple(counts))


def bar(share: float, width: int) -> str:
    """Draw a bar. Any share above 0 is visible."""
    eighths = max(round(share * width * 8), 1) if share else 0
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def quantile_rows(report: DataReport) -> list[list[str]]:
    """Return the head and a row for each role; empty if there is nothing."""
    found = {role: values for role, values in report.length_quantiles.items() if values}
    names = list(dict.fromkeys(name for values in found.values() for name in values))
    rows = [
        [role, *(f"{values[name]:,.0f}" if name in values else "" for name in names)] for role, values in found.items()
    ]
    return [["tokens", *names], *rows] if rows else []


def label_totals(labels: Iterable[LabelCount]) -> dict[str, int]:
    """Return the number of labels in each split that has any."""
    totals = {role: sum(getattr(label, role) for label in labels) for role in ROLES}
    return {role: total for role, total in totals.items() if total}


def by_frequency(labels: Iterable[LabelCount]) -> list[LabelCount]:
    return sorted(labels, key=lambda label: (-label.train, -label.eval))


def _labels(labels: Sequence[LabelCount], width: int) -> list[str]:
    totals = label_totals(labels)
    if not totals:
        return []
    left_out = len(labels) - _MOST_FREQUENT - _RAREST
    if left_out > 4:
        ordered = by_frequency(labels)
        lines = _label_lines([*ordered[:_MOST_FREQUENT], *ordered[-_RAREST:]], totals, width)
        return [*lines[:-_RAREST], f"… {many(left_out, 'label')} between these …", *lines[-_RAREST:]]
    return _label_lines(labels, totals, width)


def _label_lines(labels: Sequence[LabelCount], totals: Mapping[str, int], width: int) -> list[str]:
    """Format labels. Bars show the label's share of its split, so that splits can be compared."""
    shares = [{role: getattr(label, role) / total for role, total in totals.items()} for label in labels]
    highest = max(max(share.values()) for share in shares)
    names = [shortened(label.label, 24) for label in labels]
    rows = [["label", *totals]]
    numbers = {role: len(f"{total:,}") for role, total in totals.items()}
    longest = max(cells(name) for name in names)
    room = min((width - longest) // len(totals) - max(numbers.values()) - 14, _BAR)
    for name, label, share in zip(names, labels, shares, strict=True):
        cell = [
            f"{getattr(label, role):>{numbers[role]},}  {percent(share[role]):>8}  {bar(share[role] / highest, room)}"
            for role in totals
        ]
        rows.append([name, *cell])
    return aligned(rows, len(rows[0]))


def _longest(report: DataReport, names: Mapping[str, str], width: int) -> list[str]:
    samples = report.longest[:_LONGEST]
    places = [shortened_within(location(one.file, one.line, names), width // 2) for one in samples]
    digits = max((len(f"{one.tokens:,}") for one in samples), default=0)
    rows = [
        (f"{one.tokens:{digits},}", place, shortened(one.text, width))
        for one, place in zip(samples, places, strict=True)
    ]
    return ["longest samples, in tokens", *aligned(rows, 3)] if rows else []


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
    head = f"== row {row.number}: {many(tokens, 'token')}"
    if row.samples[0].label is None:
        samples = "" if len(row.samples) == 1 else f", {many(len(row.samples), 'sample')}"
        head += f", {many(targets, 'target')}{samples}"
    return "\n".join(
        [head, *(_sample(place, sample, row.prepared, colour) for place, sample in enumerate(row.samples, 1))]
    )


def _sample(place: int, sample: ShownSample, prepared: bool, colour: bool) -> str:
    number = "number" if prepared else "line"
    of = f" of source {sample.source}" if sample.source else ""
    label = f", label {sample.label}" if sample.label is not None else ""
    head = f"-- sample {place} ({number} {sample.number}{of}): {many(len(sample.tokens), 'token')}{label}"
    return "\n".join([head, _text(sample, colour), f"   ids: {_ids(sample)}"])


def _text(sample: ShownSample, colour: bool) -> str:
    """Return the text with runs of targets marked."""
    before, after = (_TARGET, _OFF) if colour else (_OPEN, _CLOSE)
    text = ""
    for target, run in itertools.groupby(zip(sample.pieces, sample.targets, strict=True), key=itemgetter(1)):
        part = "".join(_printable(piece) for piece, _ in run)
        text += f"{before}{part}{after}" if target else part
    return "\n".join(f"   {line}" for line in text.split("\n"))


def _printable(text: str) -> str:
    """Return the text without terminal control sequences."""
    return "".join(char if char.isprintable() or char in "\n\t" else repr(char)[1:-1] for char in text)


def _ids(sample: ShownSample) -> str:
    """Return the first and last token ids. A star marks targets."""
    ids = [f"{token}{'*' if target else ''}" for token, target in zip(sample.tokens, sample.targets, strict=True)]
    if len(ids) > TOKENS_SHOWN:
        ids = [*ids[: TOKENS_SHOWN // 2], "...", *ids[-TOKENS_SHOWN // 2 :]]
    return " ".join(ids)
