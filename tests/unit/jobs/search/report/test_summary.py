"""What is said of a search that has ended: the optimum of the rate, what it has cost, and where it should look."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from jobs.search.ledger import Ledger
from jobs.search.report.edge import edge_of, edge_warning
from jobs.search.report.summary import (
    end_warning,
    facts,
    fitted_rate,
    noise_warning,
    parabola,
    summary_lines,
)
from jobs.search.rules.prior import with_prior
from jobs.search.trials import Trials
from jobs.training.mailbox import Answer
from tests.unit.jobs.spec.test_sweep import BASE, sweep_of

STEPS = 10


def ledger_with(folder: Path, losses: dict[float, float], **fields: object) -> Ledger:
    """Trials that ended with these losses, by their rates; 200 tokens and 30 seconds of two workers each."""
    ledger = Ledger(
        sweep_of(folder, BASE, algorithm="random", **fields), str(folder / "found-1"), lambda spec: STEPS, 100.0
    )
    for number, (rate, loss) in enumerate(losses.items(), 1):
        trial = ledger.add({"learning_rate": rate, "warmup_ratio": 0.1})
        answer = Answer(status="finished", step=STEPS, tokens=200, metrics={"eval_loss": loss})
        ledger.answered(trial, answer, ("01", 30.0 * number, 60.0 * number))
    return ledger


def response(rate: float, optimum: float) -> float:
    return 0.5 + 0.1 * math.log(rate / optimum) ** 2


def test_the_optimum_of_a_parabola_is_found_between_the_points(tmp_path: Path) -> None:
    rates = [3e-5, 1e-4, 2e-4, 4e-4, 8e-4]
    fit = fitted_rate(ledger_with(tmp_path, {rate: response(rate, 2.5e-4) for rate in rates}))
    assert fit is not None and fit.optimum == pytest.approx(2.5e-4, rel=1e-3) and fit.step == STEPS
    assert fit.low == pytest.approx(fit.high, rel=1e-3)


def test_an_optimum_in_the_middle_of_a_run_says_what_it_leads_to_at_its_end(tmp_path: Path) -> None:
    ledger = ledger_with(tmp_path, {})
    for rate in [3e-5, 1e-4, 2e-4, 4e-4, 8e-4]:
        answer = Answer(status="paused", step=STEPS // 2, tokens=50, metrics={"eval_loss": response(rate, 2.5e-4)})
        ledger.answered(ledger.add({"learning_rate": rate, "warmup_ratio": 0.1}), answer)
    assert "optimum at learning_rate 0.00025" in summary_lines(ledger)[0]
    assert summary_lines(ledger)[0].endswith(f"which leads to {2.5e-4 * 0.5**0.32:.2g} for a whole run")


def test_noise_makes_the_interval_wide_and_it_holds_the_optimum() -> None:
    x = [math.log(rate) for rate in (3e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1e-3)]
    noise = [0.02, -0.03, 0.01, 0.03, -0.02, 0.01]
    points = [(at, response(math.exp(at), 2.5e-4) + off) for at, off in zip(x, noise, strict=True)]
    found = parabola(points, 1.0)
    assert found is not None
    optimum, low, high, _ = found
    assert low < optimum < high and low < 2.5e-4 < high and high / low > 1.1
    mirrored = parabola([(at, -score) for at, score in points], -1.0)  # of accuracy, say, the highest is best
    assert mirrored is not None and mirrored[0] == pytest.approx(optimum)


@pytest.mark.parametrize(
    "losses",
    [
        {1e-4: 0.5, 2e-4: 0.4, 4e-4: 0.6},  # too few
        {1e-4: 0.7, 2e-4: 0.6, 4e-4: 0.5, 8e-4: 0.4},  # the best is at an end
        {1e-4: 0.5, 2e-4: 0.7, 4e-4: 0.7, 8e-4: 0.5},  # the wrong way round
    ],
)
def test_no_optimum_is_made_up(tmp_path: Path, losses: dict[float, float]) -> None:
    assert fitted_rate(ledger_with(tmp_path, losses)) is None


def test_the_best_at_an_end_of_the_range_is_told(tmp_path: Path) -> None:
    assert end_warning(ledger_with(tmp_path, {1e-4: 0.5, 9.9e-4: 0.4})) == (
        "the best learning rate lies at the upper end of its range (0.001): a wider space may have a better one"
    )
    (tmp_path / "other").mkdir()
    assert end_warning(ledger_with(tmp_path / "other", {1e-4: 0.4, 9.9e-4: 0.5})) is None


def test_what_it_has_cost_is_known_to_the_next_driver(tmp_path: Path) -> None:
    ledger = ledger_with(tmp_path, {1e-4: 0.5, 3e-4: 0.4})
    trial = ledger.add({"learning_rate": 2e-4, "warmup_ratio": 0.1})
    ledger.answered(trial, Answer(status="failed", reason="diverged", tokens=50), ("02", 15.0, 60.0))
    ledger.close()
    again = Trials(ledger.sweep, ledger.root)
    assert again.device_hours == pytest.approx(180 / 3600) and (again.seconds, again.tokens) == (75.0, 450)
    found = facts(again)
    assert (found["best_trial"], found["runs"], found["grid_trials"], found["trials"]) == (2, 4.5, 25, 3)
    assert summary_lines(again)[-1] == (
        "450 tokens were trained on in 0.05 GPU-hours, as many as 4.5 runs; a grid would have taken 25 runs"
    )


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ([0.6902, 0.6846, 0.6873, 0.7006, 0.6935, 0.6941], True),  # MiniLM, seed 42, after 12 steps
        ([0.677, 0.636, 0.611, 0.586, 0.605, 0.628], False),  # seed 1
        ([0.69, 0.68], False),  # too few
        ([0.0] * 6, True),  # such as f1, before anything is learned
    ],
)
def test_scores_at_the_rung_that_may_be_noise_are_told(tmp_path: Path, scores: list[float], says: bool) -> None:
    told = [line for line in summary_lines(compared(tmp_path, scores)) if "may be noise" in line]
    assert len(told) == says and all("rungs: [0.5]" in line for line in told)


def test_at_the_later_rung_two_scores_are_enough_to_tell_of_noise(tmp_path: Path) -> None:
    told = [line for line in summary_lines(compared(tmp_path, [0.69, 0.68], rungs=[0.5])) if "may be noise" in line]
    assert len(told) == 1 and told[0].endswith("Start a new sweep of a longer run, or with more held-out samples")
    (tmp_path / "clear").mkdir()
    assert noise_warning(compared(tmp_path / "clear", [0.69, 0.6], rungs=[0.5])) is None


def test_a_metric_that_is_perfect_in_all_trials_cannot_rank_them(tmp_path: Path) -> None:
    base = {**BASE, "eval": {"metrics": ["accuracy"]}}
    found = noise_warning(compared(tmp_path, [1.0] * 2, base=base, metric="accuracy"))
    assert found == (
        "accuracy is 1 in all trials after step 12, so it cannot rank them: start a new sweep with metric: loss"
    )


def test_a_score_that_is_best_at_the_highest_rate_is_told(tmp_path: Path) -> None:
    falling = compared(tmp_path, [1.206, 1.204, 1.202])
    said = [line for line in summary_lines(falling) if "highest learning rate" in line]
    assert len(said) == 1 and "prior.learning_rate: 0.00012" in said[0]
    falling.set_bound(1.3e-4, 0)
    assert edge_warning(falling) is None, "the probe has ruled out what is above"
    falling.set_bound(1e-3, 0)
    assert edge_warning(falling) is not None
    failed = falling.add({"learning_rate": 3e-4, "warmup_ratio": 0.06})
    falling.answered(failed, Answer(status="failed", reason="the loss was nan", diverged=True))
    assert edge_warning(falling) is None
    for name, scores in (("bracketed", [1.206, 1.202, 1.204]), ("equal", [1.2, 1.2])):
        (tmp_path / name).mkdir()
        assert edge_warning(compared(tmp_path / name, scores)) is None


def test_a_score_that_is_best_at_the_lowest_rate_is_told(tmp_path: Path) -> None:
    rising = compared(tmp_path, [1.202, 1.204, 1.206])
    said = [line for line in summary_lines(rising) if "lowest learning rate" in line]
    assert len(said) == 1 and said[0].endswith("prior.learning_rate: 3e-05, and a space that reaches lower")
    edge = edge_of(rising)
    assert edge is not None and (edge.end, edge.compared, edge.beyond) == ("lowest", 3, "lower")
    (tmp_path / "equal").mkdir()
    assert edge_of(compared(tmp_path / "equal", [1.2, 1.2, 1.3])) is None, "an equal score at a higher rate counts"


def test_the_rates_of_every_algorithm_have_an_edge(tmp_path: Path) -> None:
    edge = edge_of(ledger_with(tmp_path, {1e-4: 0.5, 2e-4: 0.4, 4e-4: 0.3}))
    assert edge is not None and (edge.end, edge.rate, edge.is_within) == ("highest", 4e-4, False)
    (tmp_path / "inner").mkdir()
    assert edge_of(ledger_with(tmp_path / "inner", {1e-4: 0.5, 2e-4: 0.3, 4e-4: 0.4})) is None


def compared(folder: Path, scores: list[float], **fields: object) -> Ledger:
    """Trials of `auto` that are paused at the rung of a run of 48 steps with these scores, by ascending rates."""
    given = {"rungs": [0.25], "base": BASE, **fields}
    sweep, _ = with_prior(sweep_of(folder, algorithm="auto", **given))
    ledger = Ledger(sweep, str(folder / "found"), lambda spec: 48, 100.0)
    for number, score in enumerate(scores):
        trial = ledger.add({"learning_rate": 3e-5 * 2**number, "warmup_ratio": 0.06})
        ledger.answered(trial, Answer(status="paused", step=12, metrics={sweep.judged: score}))
    return ledger
