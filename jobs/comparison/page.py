"""The table of a comparison, as text and as an HTML page that loads nothing. Pure; light to import."""

from __future__ import annotations

import html
from typing import Final

from cluster.text import byte_size, compact, duration, many
from jobs.comparison.figures import Comparison, Mean, MethodFigures, findings, rate_of
from jobs.run.metric_names import GENERAL_LOSS, MAJORITY, is_general
from jobs.search.report.trial_text import format_value

_STYLE: Final = (
    "body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 24px auto; padding: 0 20px; } "
    "table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; } "
    "th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid #ddd; white-space: nowrap; } "
    "div { overflow-x: auto; }"
)
_NONE: Final = "-"


def comparison_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return the heads, and a row for each method."""
    names = _metrics_of(comparison)
    has_general = any(one.general_change is not None for one in comparison.methods)
    heads = ["method", "trained", "rate", *(name.removeprefix("eval_") for name in names)]
    heads += [*(["general loss"] if has_general else []), "peak memory", "one run", "tokens/s", "checkpoint", "search"]
    heads += [] if comparison.price is None else ["cost"]
    rows = [
        [
            f"{one.name} ({one.settings})" if one.settings else one.name,
            _trained(one),
            _NONE if (rate := rate_of(one)) is None else format_value(rate),
            *(_mean(one.metrics.get(name)) for name in names),
            *([_general(one)] if has_general else []),
            _NONE if one.peak_memory_bytes is None else byte_size(one.peak_memory_bytes),
            _NONE if one.run_s is None else duration(one.run_s),
            _NONE if one.tokens_per_s is None else f"{one.tokens_per_s:,.0f}",
            _NONE if one.checkpoint_bytes is None else byte_size(one.checkpoint_bytes),
            f"{compact(one.device_hours)} {comparison.device}-hours, {many(one.trials, 'trial')}",
            *([] if (cost := comparison.cost_of(one)) is None else [f"{cost:,.2f}"]),
        ]
        for one in comparison.methods
    ]
    return heads, rows


def _metrics_of(comparison: Comparison) -> list[str]:
    """Return the names of the held-out metrics, the one that ranks first."""
    names = dict.fromkeys(name for one in comparison.methods for name in one.metrics)
    others = [name for name in names if not is_general(name) and name not in (comparison.metric, MAJORITY)]
    return [comparison.metric, *others]


def _trained(one: MethodFigures) -> str:
    if one.trained is None or not one.parameters:
        return _NONE
    return f"{compact(one.trained)} ({one.trained / one.parameters:.2%})"


def _mean(found: Mean | None) -> str:
    if found is None:
        return _NONE
    return f"{found.mean:.4f}" + ("" if found.interval is None else f" ± {found.interval:.4f}")


def _general(one: MethodFigures) -> str:
    if one.general_change is None or GENERAL_LOSS not in one.metrics:
        return _NONE
    between = "" if one.general_change.interval is None else f" ± {one.general_change.interval:.1%}"
    return f"{one.metrics[GENERAL_LOSS].mean:.4f} ({one.general_change.mean:+.1%}{between})"


def _notes(comparison: Comparison) -> list[str]:
    """Explain what the table's heads do not say."""
    means = [mean for one in comparison.methods for mean in one.metrics.values()]
    notes = []
    if any(mean.interval is not None for mean in means):
        notes.append("± is half of the 95 % confidence interval over the seeds")
    if comparison.price is not None:
        device = "one GPU" if comparison.device == "GPU" else "one worker"
        notes.append(f"cost is that of the whole search, at {comparison.price:g} for an hour of {device}")
    return notes


def comparison_text(comparison: Comparison) -> str:
    """Format the table and the findings for a terminal."""
    heads, rows = comparison_table(comparison)
    widths = [max(len(row[at]) for row in (heads, *rows)) for at in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (heads, *rows)]
    return "\n".join([*(line.rstrip() for line in lines), *findings(comparison), *_notes(comparison)])


def comparison_page(comparison: Comparison, name: str) -> str:
    """Format the table and the findings as an HTML page."""
    heads, rows = comparison_table(comparison)
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in heads)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    lines = "".join(f"<p>{html.escape(line)}.</p>\n" for line in (*findings(comparison), *_notes(comparison)))
    title = html.escape(name)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n"
        f"<div><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>\n{lines}</body></html>\n"
    )
