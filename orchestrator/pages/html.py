"""Parts that all HTML pages share: document, style, tables and cards. The pages have no scripts and load nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from orchestrator.pages import svg, tables

# With this policy, a text that is not escaped by mistake still cannot run or load anything.
POLICY = "default-src 'none'; style-src 'unsafe-inline'"

STYLE = """
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


def document(title: str, body: str, style: str = "") -> str:
    """Make the page. It is also well-formed XML. `title` and `body` are markup already; `style` is CSS after STYLE."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n<title>{title}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>\n'
        f"<style>{STYLE}{svg.STYLE}{style}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def shown(text: str) -> str:
    """Escape a text for the page, without control characters. Every text of a page must pass through here."""
    return escape(tables.shown(text))


def tag(name: str, inside: str = "", /, **attributes: str) -> str:
    """Make an element. `inside` is markup already; attributes are escaped, and left out if empty."""
    pairs = (f' {key.rstrip("_")}="{shown(value)}"' for key, value in attributes.items() if value)
    return f"<{name}{''.join(pairs)}>{inside}</{name}>"


def section(title: str, *parts: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{''.join(parts)}</section>\n" if any(parts) else ""


def card(inside: str) -> str:
    return f'<div class="card scroll">{inside}</div>\n' if inside else ""


def cell(text: str, kind: str = "", tip: str = "") -> str:
    """Make a table cell. `dir` keeps right-to-left text from affecting its neighbours."""
    direction = "auto" if kind == "text" else ""
    return tag("td", shown(text), class_=kind, dir=direction, title=tip if tip != text else "")


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Make a card of (name, text) pairs. Pairs without a text are left out."""
    lines = "".join(f"<tr>{cell(name)}{cell(text)}</tr>\n" for name, text in rows if text)
    return f'<div class="card scroll"><table class="facts"><tbody>\n{lines}</tbody></table></div>\n'


def number_table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Make a table of texts. The first column has the given kind, and all others are numbers."""
    lines = [cell(first, kind) + "".join(cell(one, "number") for one in others) for first, *others in rows]
    return table(head, lines, len(head) - 1)


def table(head: Sequence[str], rows: Sequence[str], numbers: int) -> str:
    """Make a table from rows of cells, which are markup already. The last `numbers` columns are numbers."""
    kinds = [""] * (len(head) - numbers) + ["number"] * numbers
    titles = "".join(tag("th", shown(title), class_=kind) for title, kind in zip(head, kinds, strict=True))
    lines = "".join(f"<tr>{row}</tr>\n" for row in rows)
    return f"<table>\n<thead><tr>{titles}</tr></thead>\n<tbody>\n{lines}</tbody>\n</table>\n" if rows else ""
