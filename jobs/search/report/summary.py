"""The results of a search in numbers: the best learning rate with an interval, and the cost. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from cluster.text import compact
from jobs.search.report.edge import edge_warning
from jobs.search.rules.auto import (
    LATER,
    extrapolates,
    rate_for_a_whole_run,
    rate_range,
    varied_rate_name,
)
from jobs.search.trials import Trials

FEWEST_FITTED: Final = 4
_NEAREST: Final = 6  # trials that are fitted; farther away, the loss is no parabola: flat below and steep above
_DRAWS: Final = 400
_LEAST_SPREAD: Final = 0.03  # share of the score. Measured with MiniLM: 0.16 at a useful rung, 0.023 without learning
_QUANTILES: Final = (0.1, 0.9)


@dataclass(frozen=True)
class RateFit:
    """A parabola in the logarithm of the learning rate, fitted to the trials nearest to the best one.

    Attributes:
        optimum: learning rate of the parabola's best point.
        low, high: interval of the optimum, by bootstrapping the residuals (10 % and 90 % quantiles).
        coefficients: coefficients of the parabola in log(rate), highest power first.
        step: the step after which the scores were taken.
        share: this step as a share of a whole run.
    """

    optimum: float
    low: float
    high: float
    coefficients: tuple[float, float, float]
    step: int
    share: float


def fitted_rate(trials: Trials) -> RateFit | None:
    """Fit the scores of one step; None if too few trials have one, or if the parabola has no optimum between them."""
    first = next(iter(trials.ranked()), None)
    if first is None or rate_range(trials.sweep) is None:
        return None
    name, by_step = varied_rate_name(trials.sweep), dict[int, list[tuple[float, float]]]()
    # Trials with another batch have another number of steps, and another best rate.
    for trial in [one for one in trials.searched if one.total_steps == first.total_steps]:
        for step, score in trial.scores:
            by_step.setdefault(step, []).append((math.log(trial.values[name]), score))
    enough = {step: points for step, points in by_step.items() if len({x for x, _ in points}) >= FEWEST_FITTED}
    if not enough:
        return None
    step = max(enough)
    sign = 1.0 if trials.sweep.lower_is_better else -1.0
    found = parabola(enough[step], sign)
    return None if found is None else RateFit(*found, step, step / first.total_steps)


def parabola(
    points: Sequence[tuple[float, float]], sign: float
) -> tuple[float, float, float, tuple[float, float, float]] | None:
    """Fit a parabola to the points nearest to the best one, and return the first four fields of `RateFit`.

    None if it has no optimum between these points.

    Args:
        points: pairs of log(rate) and score.
        sign: 1 if lower scores are better, -1 if higher ones are.
    """
    best_x = min(points, key=lambda point: sign * point[1])[0]
    near = sorted(points, key=lambda point: abs(point[0] - best_x))[:_NEAREST]
    x, y = np.array([point[0] for point in near]), sign * np.array([point[1] for point in near])
    whole = _vertex(x, y)
    if whole is None:
        return None
    optimum, coefficients = whole
    smooth = np.polyval(coefficients, x)
    residuals = (y - smooth) * math.sqrt(len(x) / max(len(x) - 3, 1))
    draws = np.random.default_rng(0).choice(residuals, size=(_DRAWS, len(x)))
    tops = [top for draw in draws if (top := _vertex(x, smooth + draw)) is not None]
    low, high = np.quantile([top for top, _ in tops] or [optimum], _QUANTILES)
    a, b, c = (float(sign * value) for value in coefficients)
    return math.exp(optimum), math.exp(float(low)), math.exp(float(high)), (a, b, c)


def _vertex(x: Any, y: Any) -> tuple[float, Any] | None:
    """Return the minimum of the fitted parabola and its coefficients; None if it has no minimum between the points."""
    coefficients = np.polyfit(x, y, 2)
    if coefficients[0] <= 0:
        return None
    place = float(-coefficients[1] / (2 * coefficients[0]))
    return (place, coefficients) if x.min() <= place <= x.max() else None


def end_warning(trials: Trials) -> str | None:
    """Return a warning if the best learning rate lies at an end of its range."""
    rates, best = rate_range(trials.sweep), trials.best
    if rates is None or best is None:
        return None
    value = best.values[varied_rate_name(trials.sweep)]
    width = math.log(rates.max / rates.min) if rates.min > 0 else math.inf
    for end, words in ((rates.min, "lower"), (rates.max, "upper")):
        if end > 0 and abs(math.log(value / end)) < 0.02 * width:
            return (
                f"the best learning rate lies at the {words} end of its range ({end:.2g}): a wider space may have a "
                "better one"
            )
    return None


def noise_warning(trials: Trials) -> str | None:
    """Return a warning if the scores at the rung of `auto` differ so little that their order may be noise."""
    compared = [trial for trial in trials.searched if not trial.without_rungs and trial.scores]
    scores, is_late = [trial.scores[0][1] for trial in compared], trials.sweep.rung_shares[:1] >= LATER
    if not extrapolates(trials.sweep) or len(scores) < 2:
        return None
    step = compared[0].scores[0][0]
    if not trials.sweep.lower_is_better and set(scores) == {1.0}:
        name = trials.sweep.judged.removeprefix("eval_")
        said = f"{name} is 1 in all trials after step {step}, so it cannot rank them"
        return f"{said}: start a new sweep with metric: loss"
    largest = max(abs(score) for score in scores)
    spread = (max(scores) - min(scores)) / largest if largest else 0.0
    if spread >= _LEAST_SPREAD or (not is_late and len(scores) < FEWEST_FITTED):
        return None
    later = "To compare them later, start a new sweep with rungs: [0.5] and budget.runs: 4.6"
    return (
        f"the scores after step {step} differ by {spread:.1%} at most, which may be noise: the run may be too short to "
        f"compare learning rates{'' if is_late else ' so early'}. "
        f"{'Start a new sweep of a longer run, or with more held-out samples' if is_late else later}"
    )


def facts(trials: Trials) -> dict[str, Any]:
    """Return the results and the cost of a search, as JSON."""
    fit, best = fitted_rate(trials), trials.best
    return {
        "best_trial": None if best is None else best.number,
        "best_values": None if best is None else best.values,
        trials.sweep.judged: None if best is None else best.score,
        "scores_of_seeds": [] if best is None else trials.scores_of_seeds(best),
        "fitted_rate": None if fit is None else {"optimum": fit.optimum, "low": fit.low, "high": fit.high},
        "trials": len(trials.trials),
        "tokens": trials.tokens,
        "runs": trials.tokens / trials.tokens_per_run if trials.tokens_per_run else None,
        "device_hours": trials.device_hours,
        "grid_trials": trials.sweep.grid_size,
    }


def summary_lines(trials: Trials) -> list[str]:
    """Format the results and the cost of a search as lines of text."""
    lines = []
    if (fit := fitted_rate(trials)) is not None:
        rate = rate_for_a_whole_run(fit.optimum, fit.share)
        whole = f", which leads to {rate:.2g} for a whole run" if fit.share < 1 else ""
        lines.append(
            f"a parabola through the scores after step {fit.step} has its optimum at learning_rate {fit.optimum:.2g} "
            f"(probably {fit.low:.2g} to {fit.high:.2g}){whole}"
        )
    warnings = (end_warning(trials) or edge_warning(trials), noise_warning(trials))
    lines += [warning for warning in warnings if warning is not None]
    if trials.tokens_per_run:
        kind = "GPU" if trials.sweep.base.resources.gpus_per_worker else "CPU"
        is_grid = trials.sweep.algorithm == "grid"
        lines.append(
            f"{trials.tokens:,} tokens were trained on in {compact(trials.device_hours)} {kind}-hours, as many as "
            f"{trials.tokens / trials.tokens_per_run:.1f} runs"
            f"{'' if is_grid else f'; a grid would have taken {trials.sweep.grid_size} runs'}"
        )
    return lines
