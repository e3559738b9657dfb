"""A DataReport as one HTML page: no scripts, nothing loaded, made to be opened from a disk. Decides nothing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from html import escape

from jobs.data.report import DataReport, Example, Finding, LabelCount
from orchestrator import datapage as words
from orchestrator import svg

_PLOTTED = 40  # bars; one for each
_ROWS_SHOWN = 20
# Should a text from the data ever get past the escaping, it still cannot run or load anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f8; --card: #fff; --text: #1d2126; --soft: #5b6068; --line: #e1e4e8;
  --error: #b3261e; --warning: #9a5b00; --note: #2f5fb3; --ok: #1b7a43; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14161a; --card: #1c1f25; --text: #e4e7ec; --soft: #a3a9b3; --line: #31353d;
    --error: #ff8a80; --warning: #f2b45c; --note: #8db4ff; --ok: #6fd39a; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 24px 20px 48px; }
h1 { font-size: 22px; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 16px; margin: 30px 0 10px; }
h3 { font-size: 13px; margin: 0 0 8px; font-weight: 600; color: var(--soft); }
p { margin: 0 0 8px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px; }
.verdict { font-size: 17px; font-weight: 600; margin: 16px 0; border-left: 5px solid; overflow-wrap: anywhere; }
.verdict.ok { border-left-color: var(--ok); } .verdict.warnings { border-left-color: var(--warning); }
.verdict.errors { border-left-color: var(--error); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); gap: 14px;
  align-items: start; }
.scroll { overflow-x: auto; } .scroll svg.plot { min-width: 440px; }
.card + .card, .plots + .card { margin-top: 14px; } .plots .card { margin: 0; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { text-align: start; vertical-align: top; padding: 5px 16px 5px 0; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
th.number, td.number { text-align: right; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; } tr:last-child > td { border-bottom: 0; }
td.where { white-space: nowrap; width: 1%; font: 12.5px/1.6 ui-monospace, monospace; }
td.path { overflow-wrap: anywhere; font: 12.5px/1.6 ui-monospace, monospace; min-width: 180px; }
td.text { overflow-wrap: anywhere; min-width: 160px; }
table.facts { width: auto; } table.facts td { border: 0; padding: 1px 20px 1px 0; overflow-wrap: anywhere; }
table.facts td:first-child { color: var(--soft); white-space: nowrap; }
.finding { margin-bottom: 10px; border-left: 4px solid var(--line); }
.finding.error { border-left-color: var(--error); } .finding.warning { border-left-color: var(--warning); }
.finding.note { border-left-color: var(--note); }
.finding h3 { font-size: 15px; color: var(--text); margin: 0 0 2px; overflow-wrap: anywhere; }
.severity { font-size: 12px; margin-right: 8px; } .error .severity { color: var(--error); }
.warning .severity { color: var(--warning); } .note .severity { color: var(--note); }
.share { font-weight: 400; color: var(--soft); margin-left: 8px; }
summary { cursor: pointer; color: var(--soft); font-size: 13px; } details table { margin-top: 6px; }
.legend span { margin-right: 14px; font-size: 13px; } .legend { margin: 0 0 6px; }
@media print {
  body { background: none; font-size: 11px; } main { padding: 0; max-width: none; }
  .card, svg.plot, tr { break-inside: avoid; } h2 { break-after: avoid; }
  details::details-content { content-visibility: visible; display: block; }
}
"""


def html(report: DataReport) -> str:
    """The whole page; it parses as XML too."""
    names = words.short_names(report)
    body = (
        _head(report),
        _findings(report, names),
        _section("Length of samples", _length_plots(report), _quantiles(report)),
        _section("Sources", _source_plot(report), _sources(report)),
        _section("Labels", *_labels(report)),
        _section("Longest samples", _longest(report, names)),
        _section(
            "In training", _card(f"<p>{_text(words.packing_words(report.packing))}</p>" if report.packing else "")
        ),
    )
    title = f"Data check: {_text(report.name)}"
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"/>\n'
        f"<style>{_STYLE}{svg.STYLE}</style>\n</head>\n<body>\n<main>\n{''.join(body)}</main>\n</body>\n</html>\n"
    )


def _text(text: str) -> str:
    """Every text of a report goes through here: no markup, no control characters."""
    return escape(words.shown(text))


def _tag(name: str, inside: str = "", /, **attributes: str) -> str:
    """`inside` is markup already; attributes are escaped, and left out where empty."""
    pairs = (f' {key.rstrip("_")}="{_text(value)}"' for key, value in attributes.items() if value)
    return f"<{name}{''.join(pairs)}>{inside}</{name}>"


def _section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{''.join(parts)}</section>\n" if any(parts) else ""


def _card(inside: str) -> str:
    return f'<div class="card scroll">{inside}</div>\n' if inside else ""


def _cell(text: str, kind: str = "", tip: str = "") -> str:
    """`dir`, so that a text that is written from the right does not turn its neighbours around."""
    direction = "auto" if kind == "text" else ""
    return _tag("td", _text(text), class_=kind, dir=direction, title=tip if tip != text else "")


def _table(head: Sequence[str], rows: Sequence[str], numbers: int) -> str:
    """Rows of cells; the last `numbers` columns are numbers."""
    kinds = [""] * (len(head) - numbers) + ["number"] * numbers
    titles = "".join(_tag("th", _text(title), class_=kind) for title, kind in zip(head, kinds, strict=True))
    lines = "".join(f"<tr>{row}</tr>\n" for row in rows)
    return f"<table>\n<thead><tr>{titles}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table>\n" if rows else ""


def _folded(table: str, rows: int, what: str) -> str:
    """A long table behind its title."""
    if rows <= _ROWS_SHOWN or not table:
        return table
    return f"<details><summary>{svg.many(rows, what)}</summary>{table}</details>"


def _head(report: DataReport) -> str:
    verdict = _tag("p", _text(words.verdict(report)), class_=f"card verdict {report.verdict}")
    rows = [*words.total_rows(report), ("bad rows", report.bad_rows_file or "")]
    facts = "".join(f"<tr>{_cell(name)}{_cell(text)}</tr>\n" for name, text in rows if text)
    return (
        f"<h1>Data check: {_text(report.name)}</h1>\n{verdict}\n"
        f'<div class="card scroll"><table class="facts"><tbody>\n{facts}</tbody></table></div>\n'
    )


def _findings(report: DataReport, names: Mapping[str, str]) -> str:
    findings = words.by_severity(report.findings)
    return _section("Findings", *(_finding(finding, names) for finding in findings))


def _finding(finding: Finding, names: Mapping[str, str]) -> str:
    severity = _tag("span", finding.severity, class_="severity")
    share = _tag("span", _text(words.share_words(finding)), class_="share")
    rows = [_example(one, names, finding.kind) for one in finding.examples]
    details = ""
    if rows:
        summary = _tag("summary", svg.many(len(rows), "example"))
        details = f'<details>{summary}<div class="scroll">{_table(("where", "text"), rows, 0)}</div></details>'
    return (
        f'<div class="card finding {finding.severity}">\n<h3>{severity}{_text(finding.title)}{share}</h3>\n'
        f"<p>{_text(finding.advice)}</p>\n{details}</div>\n"
    )


def _example(example: Example, names: Mapping[str, str], kind: str) -> str:
    place = words.place_words(example, names, kind, 120)
    full = " ".join(filter(None, (example.file, example.other_file)))
    return _cell(place, "where", full) + _cell(example.text, "text")


def _length_plots(report: DataReport) -> str:
    plots = (_length_plot(role, bins, report.seq_len) for role, bins in words.bins_by_role(report).items())
    cards = "".join(map(_card, plots))
    return f'<div class="plots">{cards}</div>\n' if cards else ""


def _length_plot(role: str, bins: svg.Bins, seq_len: int) -> str:
    ranges = [svg.bin_words(low, high) for low, high in itertools.pairwise(bins.edges)]
    total = sum(bins.counts)
    plot = svg.histogram(
        bins,
        title=f"Tokens per sample, {role}",
        x_label="tokens per sample, before cutting",
        y_label="samples",
        tips=[
            f"{span} tokens: {svg.many(count, 'sample')} ({svg.percent(count, total)})"
            for span, count in zip(ranges, bins.counts, strict=True)
        ],
        mark=svg.Mark(seq_len, f"seq_len {seq_len:,}"),
        series=words.ROLES.index(role) if role in words.ROLES else 0,
    )
    return f"<h3>{_text(role)}</h3>{plot}"


def _quantiles(report: DataReport) -> str:
    if not (table := words.quantile_rows(report)):
        return ""
    head, *rows = table
    lines = [_cell(row[0]) + "".join(_cell(cell, "number") for cell in row[1:]) for row in rows]
    return _card(_table(head, lines, len(head) - 1))


def _source_plot(report: DataReport) -> str:
    sources = sorted(report.sources, key=lambda source: -source.tokens)[:_PLOTTED]
    total = sum(source.tokens for source in report.sources)
    if len(report.sources) < 2 or not total:
        return ""
    rows = [
        svg.BarRow(
            label=words.shortened_within(f"{source.where.removeprefix('data.')} {source.path}", svg.LABEL_CELLS),
            values=(source.tokens,),
            words=(svg.percent(source.tokens, total),),
            tips=(f"{words.shown(source.path)}: {svg.many(source.tokens, 'token')}",),
        )
        for source in sources
    ]
    left_out = len(report.sources) - len(sources)
    more = f", the {len(sources)} largest of {len(report.sources):,}" if left_out else ""
    return _card(f"<h3>tokens by source{more}</h3>{svg.bar_chart(rows, title='Tokens by source', x_label='tokens')}")


def _sources(report: DataReport) -> str:
    rows = words.source_rows(report.sources)
    kept = [at for at in range(len(words.SOURCE_HEAD)) if any(row[at] for row in rows)]
    kinds = ["", "path", ""] + ["number"] * (len(words.SOURCE_HEAD) - 3)
    lines = ["".join(_cell(row[at], kinds[at]) for at in kept) for row in rows]
    return _card(_table([words.SOURCE_HEAD[at] for at in kept], lines, len(kept) - 3)) if rows else ""


def _labels(report: DataReport) -> tuple[str, ...]:
    totals = words.label_totals(report.labels)
    if not totals:
        return ()
    plotted = list(report.labels)
    more = ""
    if len(plotted) > _PLOTTED:
        plotted = words.by_frequency(plotted)[:_PLOTTED]
        more = f"; the {_PLOTTED} most frequent of {len(report.labels):,}"
    rows = [_label_bar(label, totals) for label in plotted]
    plot = svg.bar_chart(rows, title="Label balance", x_label="% of the samples of the split")
    key = svg.legend(list(totals)) if len(totals) > 1 else ""
    return _card(f"<h3>share of each label{more}</h3>{key}{plot}"), _card(_label_table(report.labels, totals))


def _label_bar(label: LabelCount, totals: Mapping[str, int]) -> svg.BarRow:
    counts = {role: getattr(label, role) for role in totals}
    return svg.BarRow(
        label=words.shortened(label.label, svg.LABEL_CELLS),
        values=tuple(100 * count / totals[role] for role, count in counts.items()),
        words=tuple(svg.percent(count, totals[role]) for role, count in counts.items()),
        tips=tuple(f"{words.shown(label.label)}, {role}: {count:,}" for role, count in counts.items()),
    )


def _label_table(labels: Sequence[LabelCount], totals: Mapping[str, int]) -> str:
    head = ["label", *itertools.chain.from_iterable((role, "share") for role in totals)]
    rows = []
    for label in labels:
        counts = ((getattr(label, role), total) for role, total in totals.items())
        cells = (_cell(f"{count:,}", "number") + _cell(svg.percent(count, total), "number") for count, total in counts)
        rows.append(_cell(label.label, "text") + "".join(cells))
    return _folded(_table(head, rows, 2 * len(totals)), len(rows), "label")


def _longest(report: DataReport, names: Mapping[str, str]) -> str:
    rows = [
        _cell(f"{one.tokens:,}")
        + _cell(words.location(one.file, one.line, names), "where", one.file)
        + _cell(one.text, "text")
        for one in report.longest
    ]
    return _card(_table(("tokens", "where", "text"), rows, 0))
