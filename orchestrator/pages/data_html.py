"""A DataReport as one HTML file without scripts or other files."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from cluster.text import many, percent
from jobs.data.quality.report import DataReport, Example, Finding, Histogram, LabelCount
from orchestrator.pages import data as words
from orchestrator.pages import html as htmlpage
from orchestrator.pages import svg
from orchestrator.pages.tables import shortened, shortened_within, shown

_PLOTTED = 40  # most bars in a plot
_ROWS_SHOWN = 20


def html(report: DataReport) -> str:
    """Make the page. It is also well-formed XML."""
    names = words.short_names(report)
    body = (
        _head(report),
        htmlpage.section("Findings", *(_finding(one, names) for one in words.by_severity(report.findings))),
        htmlpage.section("Length of samples", _length_plots(report), _quantiles(report)),
        htmlpage.section("Sources", _source_plot(report), _sources(report)),
        htmlpage.section("Labels", *_labels(report)),
        htmlpage.section("Longest samples", _longest(report, names)),
        htmlpage.section(
            "In training", *(htmlpage.card(f"<p>{htmlpage.shown(line)}</p>") for line in words.packing_lines(report))
        ),
    )
    title = f"Data check: {htmlpage.shown(report.name)}"
    return htmlpage.document(title, "".join(body))


def _head(report: DataReport) -> str:
    verdict = htmlpage.tag("p", htmlpage.shown(words.verdict(report)), class_=f"card verdict {report.verdict}")
    facts = htmlpage.facts([*words.total_rows(report), ("bad records", report.bad_rows_file or "")])
    return f"<h1>Data check: {htmlpage.shown(report.name)}</h1>\n{verdict}\n{facts}"


def _finding(finding: Finding, names: Mapping[str, str]) -> str:
    severity = htmlpage.tag("span", finding.severity, class_="severity")
    share = htmlpage.tag("span", htmlpage.shown(words.format_share(finding)), class_="share")
    rows = [_example(one, names, finding.kind) for one in finding.examples]
    details = ""
    if rows:
        summary = htmlpage.tag("summary", many(len(rows), "example"))
        details = f'<details>{summary}<div class="scroll">{htmlpage.table(("where", "text"), rows, 0)}</div></details>'
    return (
        f'<div class="card finding {finding.severity}">\n<h3>{severity}{htmlpage.shown(finding.title)}{share}</h3>\n'
        f"<p>{htmlpage.shown(finding.advice)}</p>\n{details}</div>\n"
    )


def _example(example: Example, names: Mapping[str, str], kind: str) -> str:
    place = words.format_place(example, names, kind, 120)
    full = " ".join(filter(None, (example.file, example.other_file)))
    return htmlpage.cell(place, "where", full) + htmlpage.cell(example.text, "text")


def _length_plots(report: DataReport) -> str:
    plots = (_length_plot(role, bins, report.seq_len) for role, bins in words.bins_by_role(report).items())
    cards = "".join(map(htmlpage.card, plots))
    return f'<div class="plots">{cards}</div>\n' if cards else ""


def _length_plot(role: str, bins: Histogram, seq_len: int) -> str:
    ranges = [svg.format_bin(low, high) for low, high in itertools.pairwise(bins.edges)]
    total = sum(bins.counts)
    plot = svg.histogram(
        bins.edges,
        bins.counts,
        title=f"Tokens per sample, {role}",
        x_label="tokens per sample, before cutting",
        y_label="samples",
        tips=[
            f"{span} tokens: {many(count, 'sample')} ({percent(count, total)})"
            for span, count in zip(ranges, bins.counts, strict=True)
        ],
        mark=svg.Mark(seq_len, f"seq_len {seq_len:,}"),
        series=words.ROLES.index(role) if role in words.ROLES else 0,
    )
    return f"<h3>{htmlpage.shown(role)}</h3>{plot}"


def _quantiles(report: DataReport) -> str:
    if not (table := words.quantile_rows(report)):
        return ""
    return htmlpage.card(htmlpage.number_table(table[0], table[1:]))


def _source_plot(report: DataReport) -> str:
    sources = sorted(report.sources, key=lambda source: -source.tokens)[:_PLOTTED]
    total = sum(source.tokens for source in report.sources)
    if len(report.sources) < 2 or not total:
        return ""
    rows = [
        svg.BarRow(
            label=shortened_within(f"{source.where.removeprefix('data.')} {source.path}", svg.LABEL_CELLS),
            values=(source.tokens,),
            words=(percent(source.tokens, total),),
            tips=(f"{shown(source.path)}: {many(source.tokens, 'token')}",),
        )
        for source in sources
    ]
    left_out = len(report.sources) - len(sources)
    more = f", the {len(sources)} largest of {len(report.sources):,}" if left_out else ""
    return htmlpage.card(
        f"<h3>tokens by source{more}</h3>{svg.bar_chart(rows, title='Tokens by source', x_label='tokens')}"
    )


def _sources(report: DataReport) -> str:
    rows = words.source_rows(report.sources)
    kept = [at for at in range(len(words.SOURCE_HEAD)) if any(row[at] for row in rows)]
    kinds = ["", "path", ""] + ["number"] * (len(words.SOURCE_HEAD) - 3)
    lines = ["".join(htmlpage.cell(row[at], kinds[at]) for at in kept) for row in rows]
    return htmlpage.card(htmlpage.table([words.SOURCE_HEAD[at] for at in kept], lines, len(kept) - 3)) if rows else ""


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
    key = svg.legend((f"s{at}", name) for at, name in enumerate(totals)) if len(totals) > 1 else ""
    table = _label_table(report.labels, totals)
    return htmlpage.card(f"<h3>share of each label{more}</h3>{key}{plot}"), htmlpage.card(table)


def _label_bar(label: LabelCount, totals: Mapping[str, int]) -> svg.BarRow:
    counts = {role: getattr(label, role) for role in totals}
    return svg.BarRow(
        label=shortened(label.label, svg.LABEL_CELLS),
        values=tuple(100 * count / totals[role] for role, count in counts.items()),
        words=tuple(percent(count, totals[role]) for role, count in counts.items()),
        tips=tuple(f"{shown(label.label)}, {role}: {count:,}" for role, count in counts.items()),
    )


def _label_table(labels: Sequence[LabelCount], totals: Mapping[str, int]) -> str:
    head = ["label", *itertools.chain.from_iterable((role, "share") for role in totals)]
    rows = []
    for label in labels:
        counts = [(getattr(label, role), total) for role, total in totals.items()]
        cells = itertools.chain.from_iterable((f"{count:,}", percent(count, total)) for count, total in counts)
        rows.append([label.label, *cells])
    table = htmlpage.number_table(head, rows, "text")
    if len(rows) <= _ROWS_SHOWN or not table:
        return table
    return f"<details><summary>{many(len(rows), 'label')}</summary>{table}</details>"


def _longest(report: DataReport, names: Mapping[str, str]) -> str:
    rows = [
        htmlpage.cell(f"{one.tokens:,}")
        + htmlpage.cell(words.location(one.file, one.line, names), "where", one.file)
        + htmlpage.cell(one.text, "text")
        for one in report.longest
    ]
    return htmlpage.card(htmlpage.table(("tokens", "where", "text"), rows, 0))
