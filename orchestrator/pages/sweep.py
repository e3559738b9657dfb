"""The live table of a sweep, and the output of `fleetune sweep status`, as text. Makes no requests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Literal

from cluster.text import compact, duration, first_line, many
from jobs.run.summary import RunSummary
from jobs.search.report.status import SweepStatus, counts_of
from jobs.search.report.trial_text import format_value, format_values
from jobs.search.rules.budget import most_trials
from jobs.search.rules.varying import short_name
from jobs.search.trial import Trial
from orchestrator.pages.show import format_status
from orchestrator.pages.tables import GAP, cut, plain, table

MOST_ROWS: Final = 20
FEWEST_ROWS: Final = 3
_LEAST_STATE: Final = 12  # least characters of the last column
_MOST_CELL: Final = 12
_TOKENS, _LOSS = "tokens", "training loss"

Kind = Literal["head", "best", "running", "failed", "other", "note"]
Line = tuple[str, Kind]  # a line on the screen; its kind determines the style


def shown_trials(status: SweepStatus, most: int) -> tuple[Trial, ...]:
    """Return the trials to show: ended and waiting trials, the best first, and then running trials.

    If there are more than `most`, running trials are kept first, and then the best.
    """
    running = status.running[:most]
    others = [trial for trial in status.trials if trial.state != "running"]
    return (*others[: most - len(running)], *running)


def screen(status: SweepStatus, width: int, height: int) -> list[Line]:
    """Make the live table, without its last line.

    Args:
        width: columns of the terminal. Less important columns are left out if they do not fit.
        height: most lines; but at least FEWEST_ROWS trials are shown.
    """
    if not status.trials:
        return []
    depth = max(len(_split_head(name)) for name in _heads(status))
    notes = 3  # lines below the rows: the best trial, the trials not shown, and the counts
    rows = shown_trials(status, max(min(MOST_ROWS, height - depth - notes), FEWEST_ROWS))
    texts = _columns(status, rows, width)
    lines: list[Line] = [(text, "head") for text in texts[: -len(rows)]]
    lines += [(text, _kind(trial, status)) for text, trial in zip(texts[-len(rows) :], rows, strict=True)]
    shown = {trial.number for trial in rows}
    if hidden := tuple(trial for trial in status.trials if trial.number not in shown):
        lines.append((f"not shown: {format_counts(counts_of(hidden))}", "note"))
    if status.best is not None:
        lines.append((f"best so far: {format_best(status.best, status)}", "note"))
    every = f"{many(len(status.trials), 'trial')}: {format_counts(counts_of(status.trials))}"
    lines.append((f"{every}; {'; '.join(format_budget(status))}", "note"))
    return [(cut(text, width), kind) for text, kind in lines]


def format_elapsed(status: SweepStatus) -> str:
    """Format the time: `3m20s passed, about 5m00s to go`."""
    left = "" if status.remaining_s is None else f", about {duration(status.remaining_s)} to go"
    return f"{duration(status.used_s)} passed{left}"


def format_budget(status: SweepStatus) -> list[str]:
    """Describe the used budget: `12,345 tokens, 1.2 of 3.5 runs`, and each other bound."""
    budget, runs = status.sweep.budget, status.runs or 0.0
    tokens = f"{status.tokens:,}{f' of {budget.tokens:,}' if budget.tokens is not None else ''} tokens"
    words = [f"{tokens}, {runs:.1f}{f' of {budget.runs:g}' if budget.runs is not None else ''} runs"]
    if math.isfinite(most := most_trials(status.sweep)):
        words.append(f"{len(status.searched)} of {many(int(most), 'trial')} begun")
    if budget.gpu_hours is not None:
        words.append(f"{compact(status.device_hours)} of {budget.gpu_hours:g} GPU-hours")
    if budget.minutes is not None:
        words.append(f"{status.used_s / 60:.1f} of {budget.minutes:g} minutes")
    return words


def format_counts(counts: dict[str, int]) -> str:
    """Format counts by state: `2 running, 4 finished, 1 failed`."""
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def format_best(trial: Trial, status: SweepStatus) -> str:
    """Describe a trial: `trial 3, loss 0.4312 after step 12 of 12 (learning_rate 3.2e-04)`."""
    metric = status.sweep.judged.removeprefix("eval_")
    where = f"{metric} {trial.score:.4f} after step {trial.scored_step} of {trial.total_steps}"
    return f"trial {trial.number}, {where} ({format_values(trial.values)})"


def status_page(run: RunSummary, status: SweepStatus, resume: str | None = None) -> str:
    """Format the page of `fleetune sweep status`.

    Args:
        run: the sweep's entry in `fleetune runs`.
        resume: the command that resumes the sweep, if it ended early.
    """
    counts = f": {format_counts(counts_of(status.trials))}" if status.trials else ""
    rows = [("sweep", run.name), ("status", format_status(run)), *([("reason", run.reason)] if run.reason else [])]
    if status.phase is not None:
        rows.append(("phase", f"{status.phase[0]} ({duration(status.phase[1])})"))
    rows.append(("trials", f"{len(status.trials)}{counts}"))
    running = [_format_running(trial) for trial in status.running]
    rows += [("running" if not place else "", words) for place, words in enumerate(running)]
    rows.append(("best so far", format_best(status.best, status) if status.best else "no trial has a score yet"))
    rows += [("used" if not place else "", words) for place, words in enumerate(format_budget(status))]
    rows += [("time", format_elapsed(status)), ("sweep at", run.root)]
    if resume is not None:
        rows.append(("resume", resume))
    return table(rows)


def _format_running(trial: Trial) -> str:
    loss = "" if trial.loss is None else f", training loss {trial.loss:.4f}"
    return f"trial {trial.number}, step {trial.step} of {trial.total_steps}{loss} ({format_values(trial.values)})"


def _kind(trial: Trial, status: SweepStatus) -> Kind:
    if status.best is not None and trial.number == status.best.number:
        return "best"
    if trial.state in ("running", "failed"):
        return "running" if trial.state == "running" else "failed"
    return "other"


def _heads(status: SweepStatus) -> list[str]:
    """Return the heads of all columns. The last column is aligned to the left."""
    metric = status.sweep.judged.removeprefix("eval_").rpartition(":")[2]
    values = [short_name(name) for name in status.sweep.dimensions]
    return ["trial", *values, f"held-out {metric}", _LOSS, "step", _TOKENS, "state"]


def _split_head(head: str) -> list[str]:
    """Split a head into several lines, because names of fields are much longer than their values."""
    return [cut(word, _MOST_CELL) for word in head.replace("_", " ").split()]


def _cells(trial: Trial, status: SweepStatus) -> list[str]:
    return [
        f"{trial.number}",
        *(cut(format_value(trial.values.get(name)), _MOST_CELL) for name in status.sweep.dimensions),
        "-" if trial.score is None else f"{trial.score:.4f}",
        "-" if trial.loss is None else f"{trial.loss:.4f}",
        f"{trial.step}/{trial.total_steps}" if trial.total_steps else f"{trial.step}",
        compact(trial.tokens),
        f"{trial.state}: {plain(first_line(trial.reason))}" if trial.reason else trial.state,
    ]


def _columns(status: SweepStatus, trials: Sequence[Trial], width: int) -> list[str]:
    """Return lines of heads and trials.

    If they are too wide, tokens, training losses and the last values are dropped.
    """
    heads, rows = _heads(status), [_cells(trial, status) for trial in trials]
    words = [_split_head(head) for head in heads]
    widths = [max(map(len, [*words[at], *(row[at] for row in rows)])) for at in range(len(heads))]
    kept, last = list(range(len(heads))), len(heads) - 1
    values = list(range(len(status.sweep.dimensions), 1, -1))
    for at in [heads.index(_TOKENS), heads.index(_LOSS), *values]:
        if sum(widths[one] + len(GAP) for one in kept[:-1]) + min(widths[last], _LEAST_STATE) <= width:
            break
        kept.remove(at)
    depth = max(len(words[at]) for at in kept)
    above = [[([""] * depth + words[at])[line - depth] for at in range(len(heads))] for line in range(depth)]
    return [
        GAP.join(row[at] if at == last else row[at].rjust(widths[at]) for at in kept).rstrip()
        for row in (*above, *rows)
    ]
