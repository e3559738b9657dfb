"""Makes an HTML page of a sweep, with plots by plotly and the leaderboard. The page loads nothing from the network."""

from __future__ import annotations

import html
import math
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from cluster.errors import InputError
from jobs.search.report.summary import fitted_rate, summary_lines
from jobs.search.report.trial_text import format_values, leaderboard
from jobs.search.rules.auto import rate_name, rate_range, varied_rate_name
from jobs.search.rules.spec_text import format_space, format_sweep
from jobs.search.rules.varying import short_name
from jobs.search.trials import Trials

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FEWEST_FOR_IMPORTANCE: Final = 10
_HEIGHT = 420
_STYLE = (
    "body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 24px auto; padding: 0 20px; } "
    "pre { overflow-x: auto; font-size: 13px; }"
)


def sweep_page(trials: Trials) -> str:
    """Return the whole page.

    Raises:
        InputError: plotly is not installed, or no trial was scored yet.
    """
    try:
        import plotly.io  # noqa: F401
    except ImportError as error:
        raise InputError("a page with plots needs plotly: pip install 'fleetune[plots]'") from error
    if not any(trial.scores for trial in trials.trials.values()):
        raise InputError("no trial was scored yet, so there is nothing to plot: fleetune sweep leaderboard shows them")
    makers = (over_rate, over_rate_and_warmup, best_so_far, by_step, importance)
    drawn = [figure for make in makers if (figure := make(trials)) is not None]
    plots = [figure.to_html(full_html=False, include_plotlyjs=number == 0) for number, figure in enumerate(drawn)]
    lines = "".join(f"<p>{html.escape(line)}</p>" for line in summary_lines(trials))
    title = html.escape(trials.root.rstrip("/").rpartition("/")[2])
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>"
        f"<body><h1>{title}</h1><p>{html.escape(format_sweep(trials.sweep))}</p>"
        f"<p>{html.escape(format_space(trials.sweep))}</p>{lines}{''.join(plots)}"
        f"<h2>Trials</h2><pre>{html.escape(leaderboard(trials))}</pre></body></html>\n"
    )


def _figure(title: str, x: str, y: str, **layout: Any) -> Figure:
    from plotly.graph_objects import Figure

    figure = Figure()
    figure.update_layout(title=title, xaxis_title=x, yaxis_title=y, height=_HEIGHT, template="plotly_white", **layout)
    return figure


def _hover(trials: Trials, numbers: list[int]) -> list[str]:
    return [f"trial {number}: {format_values(trials.trials[number].values)}" for number in numbers]


def over_rate(trials: Trials) -> Figure | None:
    """Plot the scores over the learning rate, in one colour for each scored step, with the fitted parabola."""
    if rate_range(trials.sweep) is None:
        return None
    name, judged = varied_rate_name(trials.sweep), trials.sweep.judged
    figure = _figure(f"{judged} over the learning rate", "learning rate", judged, xaxis_type="log")
    for step in sorted({step for trial in trials.trials.values() for step, _ in trial.scores}):
        found = [(trial.values[name], score, trial.number) for trial in trials.trials.values()
                 for at, score in trial.scores if at == step]  # fmt: skip
        rates, scores, numbers = (list(column) for column in zip(*found, strict=True))
        figure.add_scatter(
            x=rates, y=scores, mode="markers", name=f"after step {step}", text=_hover(trials, numbers),
            marker={"size": 10},
        )  # fmt: skip
    if (fit := fitted_rate(trials)) is not None:
        rates = [trial.values[name] for trial in trials.trials.values() if fit.step in dict(trial.scores)]
        x = np.linspace(math.log(min(rates)), math.log(max(rates)), 80)
        figure.add_scatter(x=np.exp(x).tolist(), y=np.polyval(fit.coefficients, x).tolist(), mode="lines",
                           name=f"parabola after step {fit.step}")  # fmt: skip
        figure.add_vrect(x0=fit.low, x1=fit.high, opacity=0.12, line_width=0, fillcolor="green")
        figure.add_vline(x=fit.optimum, line_dash="dot", annotation_text=f"{fit.optimum:.2g}")
    return figure


def over_rate_and_warmup(trials: Trials) -> Figure | None:
    """Plot the newest score of each trial as a colour, over the learning rate and one other field, such as warmup."""
    name, sweep = rate_name(trials.sweep), trials.sweep
    others = [other for other in sweep.dimensions if other != name]
    if name is None or not others:
        return None
    other = next((one for one in others if "warmup" in one), others[0])
    found = [trial for trial in trials.trials.values() if trial.score is not None]
    title = f"newest {sweep.judged} over learning rate and {short_name(other)}"
    figure = _figure(title, "learning rate", short_name(other), xaxis_type="log")
    figure.add_scatter(
        x=[trial.values[name] for trial in found],
        y=[trial.values[other] for trial in found],
        mode="markers",
        text=[f"{words}: {trial.score:.4f}"
              for words, trial in zip(_hover(trials, [one.number for one in found]), found, strict=True)],
        marker={
            "size": 16, "color": [trial.score for trial in found], "colorscale": "Viridis", "showscale": True,
            "reversescale": sweep.lower_is_better,
        },
    )  # fmt: skip
    return figure


def best_so_far(trials: Trials) -> Figure:
    """Plot the best final score so far over the tokens of all trials, in the order of their numbers."""
    judged, pick = trials.sweep.judged, min if trials.sweep.lower_is_better else max
    tokens, taken, best = 0, list[int](), list[float]()
    for trial in trials.trials.values():
        tokens += trial.tokens
        if trial.state == "finished" and trial.score is not None:
            taken.append(tokens)
            best.append(pick([*best[-1:], trial.score]))
    figure = _figure(f"best {judged} so far", "tokens, trial after trial", judged)
    figure.add_scatter(x=taken, y=best, mode="lines+markers", line={"shape": "hv"})
    return figure


def by_step(trials: Trials) -> Figure:
    """Plot the scores of each trial over its steps."""
    figure = _figure(f"{trials.sweep.judged} of each trial", "optimizer steps", trials.sweep.judged)
    for trial in trials.trials.values():
        if trial.scores:
            steps, scores = (list(column) for column in zip(*trial.scores, strict=True))
            figure.add_scatter(
                x=steps, y=scores, mode="lines+markers", name=f"{trial.number}: {format_values(trial.values)}"
            )
    return figure


def importance(trials: Trials) -> Figure | None:
    """Plot the importance of each field for scores after the same share of a run, by Optuna; None if too few have one.

    It is the share after which most trials have a score; the last one of several.
    """
    scored = [trial for trial in trials.trials.values() if trial.scores]
    if len(scored) < FEWEST_FOR_IMPORTANCE or len(trials.sweep.dimensions) < 2:
        return None
    import optuna

    from jobs.search.tuning.proposing import distribution_of, holds

    known = [trial for trial in scored if holds(trials.sweep, trial.values)]
    # Runs with other batches have other numbers of steps, of which a share is not always a whole number.
    by_share = [{round(20 * step / trial.total_steps): score for step, score in trial.scores} for trial in known]
    counts = Counter(share for scores in by_share for share in scores)
    share = max(counts, key=lambda share: (counts[share], share), default=0)
    if counts[share] < FEWEST_FOR_IMPORTANCE:
        return None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="minimize" if trials.sweep.lower_is_better else "maximize")
    space = {name: distribution_of(values) for name, values in trials.sweep.dimensions.items()}
    for trial, scores in zip(known, by_share, strict=True):
        if (score := scores.get(share)) is not None:
            study.add_trial(optuna.trial.create_trial(params=trial.values, distributions=space, value=score))
    found = optuna.importance.get_param_importances(study)
    names = [short_name(name) for name in found]
    figure = _figure(f"importance for {trials.sweep.judged} after {share / 20:.0%} of a run", "share", "")
    figure.add_bar(x=list(found.values()), y=names, orientation="h")
    return figure
