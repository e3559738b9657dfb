"""Describes trials: one line each, and the leaderboard. Pure; light to import."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from cluster.text import first_line
from jobs.search.ledger import Ledger
from jobs.search.rules.varying import short_name
from jobs.search.trial import Trial
from jobs.search.trials import Trials


def format_value(value: Any) -> str:
    """Format a value: `3.2e-04`, `0.1`, `cosine`."""
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < abs(value) < 1e-2 else f"{value:.3g}"
    return str(value)


def format_values(values: Mapping[str, Any]) -> str:
    """Format the values of a trial: `learning_rate 3.2e-04, warmup_ratio 0.1`."""
    return ", ".join(f"{short_name(name)} {format_value(value)}" for name, value in values.items())


def format_trial(trial: Trial) -> str:
    """Describe a trial: `trial 3 (learning_rate 3.2e-04, warmup_ratio 0.1)`; a repeat also with its seed."""
    seed = "" if trial.repeats is None else f", seed {trial.spec.seed}"
    return f"trial {trial.number} ({format_values(trial.values)}{seed})"


def format_seeds(trials: Trials, trial: Trial) -> str:
    """Describe the seeds of a finalist, `mean of 3 seeds 0.4628, standard deviation 0.0110`.

    Of a repeat: `seed 43 of trial 5`. Empty for any other trial.
    """
    if trial.repeats is not None:
        return f"seed {trial.spec.seed} of trial {trial.repeats}"
    scores = trials.scores_of_seeds(trial)
    if len(scores) < 2:
        return ""
    mean, deviation = statistics.fmean(scores), statistics.stdev(scores)
    return f"mean of {len(scores)} seeds {mean:.4f}, standard deviation {deviation:.4f}"


def leaderboard_facts(trials: Trials) -> list[dict[str, Any]]:
    """Return the leaderboard for programs, as JSON values."""
    return [
        {
            "trial": trial.number,
            "values": trial.values,
            "state": trial.state,
            trials.sweep.judged: trial.score,
            "scores": trial.scores,
            "step": trial.step,
            "tokens": trial.tokens,
            "reason": trial.reason,
            "seed": trial.spec.seed,
            "repeats": trial.repeats,
            "mean": statistics.fmean(seeds) if len(seeds := trials.scores_of_seeds(trial)) > 1 else None,
            "run": trial.paths.root,
        }
        for trial in trials.ranked()
    ]


def trial_line(ledger: Ledger, trial: Trial) -> str:
    """Describe a trial after a gang's answer, in one line."""
    what = format_trial(trial)
    metric = ledger.sweep.judged.removeprefix("eval_")
    if trial.state in ("failed", "stopped"):
        return f"{what}: {trial.state}: {first_line(trial.reason or '')}"
    if trial.score is None or trial.step > trial.scores[-1][0]:
        return f"{what}: saved at step {trial.step} of {trial.total_steps}"
    best, rank = ledger.best, ""
    if trial.repeats is not None:
        rank = f": trial {trial.repeats} has a {format_seeds(ledger, ledger.trials[trial.repeats])}"
    elif trial.state == "finished" and best is not None:
        rank = ", the best so far" if best is trial else f", the best is {best.score:.4f}"
    return f"{what}: {metric} {trial.score:.4f} after step {trial.step} of {trial.total_steps}{rank}"


def leaderboard(trials: Trials) -> str:
    """Format a table with a line for each trial, the best first."""
    names = list(trials.sweep.dimensions)
    metric = trials.sweep.judged.removeprefix("eval_")
    head = ["trial", *(short_name(name) for name in names), metric, "step", "tokens", "state", "why"]
    cells = [
        [
            f"{trial.number}",
            *(format_value(trial.values.get(name)) for name in names),
            "-" if trial.score is None else f"{trial.score:.4f}",
            f"{trial.step}",
            f"{trial.tokens:,}",
            trial.state,
            first_line(trial.reason) if trial.reason else format_seeds(trials, trial),
        ]
        for trial in trials.ranked()
    ]
    rows = [head, *cells]
    *widths, _ = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = ("  ".join(map(str.rjust, row, [*widths, 0])) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
