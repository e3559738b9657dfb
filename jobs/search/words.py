"""What is said of trials: one line each, and the leaderboard. Pure; light to import."""

from __future__ import annotations

from typing import Any

from jobs.search.ledger import Ledger, Trial


def value_words(value: Any) -> str:
    """`3.2e-04`, `0.1`, `cosine`."""
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-2 else f"{value:.3g}"
    return str(value)


def values_words(trial: Trial) -> str:
    """`learning_rate 3.2e-04, warmup_ratio 0.1`."""
    return ", ".join(f"{name.rpartition('.')[2]} {value_words(value)}" for name, value in trial.values.items())


def trial_line(ledger: Ledger, trial: Trial) -> str:
    """What a gang has just answered of a trial."""
    what = f"trial {trial.number} ({values_words(trial)})"
    metric = ledger.sweep.judged.removeprefix("eval_")
    if trial.state == "failed" or trial.score is None:
        return f"{what}: failed: {trial.reason}"
    best = ledger.best
    rank = "" if best is None else ", the best so far" if best is trial else f", the best is {best.score:.4f}"
    return f"{what}: {metric} {trial.score:.4f} after step {trial.step} of {ledger.total_steps}{rank}"


def leaderboard(ledger: Ledger) -> str:
    """A line for each trial, the best first."""
    names = list(ledger.sweep.dimensions)
    metric = ledger.sweep.judged.removeprefix("eval_")
    head = ["trial", *(name.rpartition(".")[2] for name in names), metric, "step", "tokens", "state", "why"]
    rows = [head]
    for trial in ledger.ranked():
        rows.append(
            [
                f"{trial.number}",
                *(value_words(trial.values.get(name)) for name in names),
                "-" if trial.score is None else f"{trial.score:.4f}",
                f"{trial.step}",
                f"{trial.tokens:,}",
                trial.state,
                trial.reason or "",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    last = len(head) - 1
    return "\n".join(
        "  ".join(cell if column == last else cell.rjust(widths[column]) for column, cell in enumerate(row)).rstrip()
        for row in rows
    )
