"""Which steps are outlying, when a run goes back, and when it fails. The search for fp16's loss scale is no failure."""

from __future__ import annotations

import json
import math
import pathlib
import random
from collections.abc import Iterable
from typing import cast

import pytest

from jobs.remedies.excessive_rate import compared_with_base, compared_with_first, may_be_worse_than_at_first
from jobs.remedies.outlier_text import failure, failure_report, rollback_report, skip_message, summary, untrained
from jobs.remedies.outliers import (
    COMPARE_AGAIN,
    FEWEST,
    FEWEST_STEPS,
    MOST_IN_A_ROW,
    MOST_ROLLBACKS,
    SUSPECTED,
    TROUBLE,
    WINDOW,
    Outlier,
    Rollback,
    after_rollback,
    after_step,
    compared_with_lowest,
    is_barred,
    lowest_to_measure,
    outlier_of,
    rise_of,
    rollback_of,
    targets_of,
    with_counts,
    without_window,
)
from jobs.run.checkpoints import StepHistory

CURVES = pathlib.Path(__file__).resolve().parents[4] / "bench" / "data"
RATE, WARMUP = 1e-3, 10


def trained(
    losses: Iterable[float], history: StepHistory | None = None, start: int = 0, norm: float = 1.0
) -> tuple[StepHistory, list[int]]:
    """The history after steps with these losses, and the numbers of the outlying ones, from 0."""
    history, found = history or StepHistory(), []
    for step, loss in enumerate(losses, start):
        outlier = outlier_of(history, loss, norm)
        if outlier is not None:
            found.append(step)
        applied = outlier is None and not is_barred(history, step)
        history = after_step(history, step, loss, norm, outlier=outlier, applied=applied, scaling=False)
    return history, found


def noisy(level: float, count: int, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [level * math.exp(draw.gauss(0, 0.05)) for _ in range(count)]


def test_a_far_higher_loss_or_gradient_is_outlying_and_a_lower_one_is_not() -> None:
    history, found = trained(noisy(3.0, 40))
    assert not found and len(history.losses) == len(history.norms) == WINDOW
    about_three, about_one = cast(float, pytest.approx(3.0, rel=0.1)), cast(float, pytest.approx(1.0))
    assert outlier_of(history, 9.0, 1.0) == Outlier("loss", 9.0, about_three)
    assert outlier_of(history, 3.0, 50.0) == Outlier("gradients", 50.0, about_one)
    assert outlier_of(history, 3.9, 5.0) is None
    assert outlier_of(history, 0.01, 0.01) is None


def test_losses_of_two_sources_are_normal_although_the_lower_ones_are_more() -> None:
    """Every fourth batch is of a source that the model has still to learn."""
    losses = [noisy(5.0, 1, step)[0] if step % 4 == 3 else noisy(0.5, 1, step)[0] for step in range(120)]
    history, found = trained(losses)
    assert not found and outlier_of(history, 20.0, 1.0) is not None


def test_one_outlier_among_the_first_steps_does_not_make_later_ones_normal() -> None:
    """Nothing is compared there, so it enters the window. Two such values show that the data has them."""
    early = [*noisy(4.0, 3), 60.0, *noisy(3.9, 4)]
    history, found = trained(early)
    assert not found and outlier_of(history, 60.0, 1.0) is not None and outlier_of(history, 4.1, 1.0) is None
    rare = [2.0 if step % 10 else 4.5 for step in range(1, 201)]  # one batch of ten has a loss of its own
    assert len(trained([4.5, *rare])[1]) == 1, "the first one seems an outlier, the others do not"
    history, found = trained([*early[:5], 58.0, *early[5:]])
    assert not found and outlier_of(history, 60.0, 1.0) is None and outlier_of(history, 200.0, 1.0) is not None


def test_a_loss_of_many_nats_need_not_double() -> None:
    history, _ = trained([4.0 + 0.01 * (step % 5) for step in range(40)])
    assert outlier_of(history, 5.5, 1.0) is not None and outlier_of(history, 4.9, 1.0) is None


def test_nothing_is_compared_before_the_eighth_step() -> None:
    """A loss that is not finite is outlying at once."""
    history, _ = trained(noisy(3.0, FEWEST - 1))
    assert outlier_of(history, 90.0, 90.0) is None
    assert outlier_of(history, math.nan, 1.0) is not None
    assert outlier_of(trained(noisy(3.0, FEWEST))[0], 90.0, 1.0) is not None


def test_a_value_that_is_not_finite_never_enters_the_window() -> None:
    losses = noisy(3.0, 30)
    losses[10] = losses[20] = math.nan
    history, found = trained(losses)
    assert found == [10, 20] and all(map(math.isfinite, history.losses))
    assert outlier_of(history, 3.1, 1.0) is None and outlier_of(history, 9.0, 1.0) is not None


def test_wide_losses_of_a_run_that_knows_its_samples_are_normal() -> None:
    """Losses from 0.002 to 0.2: each is compared on the scale of logarithms."""
    draw = random.Random(1)
    _, found = trained([0.02 * math.exp(draw.gauss(0, 1.2)) for _ in range(400)])
    assert not found
    history, _ = trained([0.0] * 40, norm=0.0)
    assert outlier_of(history, 0.1, 0.9) is None and outlier_of(history, 3.0, 0.9) is not None


@pytest.mark.parametrize(("table", "least"), [("minilm", 81), ("smollm2", 27)])
def test_no_recorded_run_is_in_trouble(table: str, least: int) -> None:
    """Rates from 1e-5 to 1e-3. MiniLM: 50 steps; some of the runs learn nothing. SmolLM2: 20 steps of four rows."""
    runs = [json.loads(line) for line in (CURVES / f"{table}.jsonl").read_text().splitlines()]
    assert len(runs) >= least
    for run in runs:
        losses = run["training_loss"]
        assert not trained(losses)[1]
        histories = [trained(losses[: steps + 1])[0] for steps in range(len(losses))]
        assert not any(lowest_to_measure(one, steps + 1) for steps, one in enumerate(histories)), run["learning_rate"]


def in_trouble(rollbacks: int = 0, rate_factor: float = 1.0, done: int = 80) -> tuple[StepHistory, int]:
    history, _ = trained([*noisy(3.0, done), 9.0, 9.1, 9.2])
    at_fault = False if rollbacks else None  # the batches of the first trouble
    changed = {"rollbacks": rollbacks, "rate_factor": rate_factor, "batches_at_fault": at_fault}
    return history.model_copy(update=changed), done + TROUBLE


def test_two_outliers_are_skipped_and_the_third_in_a_row_goes_back() -> None:
    history, _ = trained([*noisy(3.0, 80), 9.0, 9.1])
    assert rollback_of(history, 82, WARMUP) is None
    history, step = in_trouble()
    assert rollback_of(history, step, WARMUP) == Rollback(1, 80, 83, (80 - SUSPECTED, 83), 1.0, cuts_rate=False)


def test_the_second_rollback_halves_the_rate_and_the_fifth_trouble_fails() -> None:
    history, step = in_trouble(rollbacks=1)
    second = rollback_of(history, step, WARMUP)
    assert second is not None and second.cuts_rate and second.rate_factor == 0.5
    assert "train.learning_rate 0.001 is too high" in rollback_report(second, 50, RATE).cause
    history, step = in_trouble(MOST_ROLLBACKS, 0.125)
    assert rollback_of(history, step, WARMUP) is None
    reason = failure(history, step, RATE)
    assert reason is not None and "train.learning_rate 0.001 is too high" in reason and "6.25e-05" in reason
    report = failure_report(history, step, RATE)
    assert report is not None and report.advice == "set train.learning_rate to at most 6.25e-05"
    assert failure_report(trained(noisy(3.0, 40))[0], 40, RATE) is None


def test_a_loss_that_rises_step_by_step_goes_back_with_a_lower_rate() -> None:
    """No step is far above the 32 before it, and the loss ends at more than twice its lowest level."""
    losses = [*noisy(3.0, 40), *(3.0 * 1.02**step for step in range(40))]
    history, found = trained(losses)
    assert not found
    begun = next(step for step in range(len(losses)) if lowest_to_measure(trained(losses[:step])[0], step))
    history, _ = trained(losses[:begun])
    assert rollback_of(history, begun, WARMUP) is None
    history = compared_with_lowest(history, begun, 2.2 * 3.0)
    rollback = rollback_of(history, begun, WARMUP)
    assert rollback is not None and rollback.cuts_rate and rollback.rate_factor == 0.5 and rollback.barred is None
    assert 55 < begun < 65 and 30 <= rollback.begins == history.lowest_at <= 48
    assert "so train.learning_rate 0.001 is too high" in rollback_report(rollback, 20, RATE).cause
    factors = [rollback_of(history, begun, warmup).rate_factor for warmup in (0, 100, 10_000)]  # type: ignore[union-attr]
    assert factors == [0.5, 0.5 * (history.lowest_at - 4) / 100, 1 / 16]
    again = after_rollback(trained(losses[:20])[0], history, rollback, 20)
    assert rise_of(again) is None and again.rollbacks == 1
    spent = history.model_copy(update={"rollbacks": MOST_ROLLBACKS, "rate_factor": 0.5**4})
    reason = failure(spent, begun, RATE)
    assert reason is not None and "rose from" in reason and "train.learning_rate 0.001 is too high" in reason
    assert rise_of(without_window(history)) is None
    assert rise_of(compared_with_lowest(history, begun, math.nan)) is not None


def test_losses_of_another_source_are_no_rise() -> None:
    """Rows of the lowest losses have low ones now too. They are measured again later: the run may still be ruined."""
    losses = [*noisy(0.5, 40), *(0.5 + 0.02 * step for step in range(60)), *noisy(1.7, 40)]
    step = next(done for done in range(140) if lowest_to_measure(trained(losses[:done])[0], done))
    history, _ = trained(losses[:step])
    assert lowest_to_measure(history, step) == range(history.lowest_at - 5, history.lowest_at - 2)
    healthy = compared_with_lowest(history, step, 0.6)
    assert rise_of(healthy) is None and rollback_of(healthy, step, WARMUP) is None
    later, _ = trained(noisy(1.7, COMPARE_AGAIN), healthy, step)
    assert lowest_to_measure(later, step + COMPARE_AGAIN - 1) is None
    assert lowest_to_measure(later, step + COMPARE_AGAIN) is not None
    assert rollback_of(compared_with_lowest(later, step + COMPARE_AGAIN, 1.7), step + COMPARE_AGAIN, WARMUP) is not None


def test_a_run_that_is_ruined_within_its_first_steps_goes_back_to_its_start() -> None:
    """Real losses at rates that were 100 and 200 times too high."""
    for losses in (
        [4.16, 4.29, 3.14, 3.55, 5.06, 5.23, 5.65, 6.02, 6.73, 6.57, 6.52, 5.87],
        [5.0, 3.63, 21.66, 29.89, 10.6, 30.84, 23.77, 16.11],
    ):
        history, found = trained(losses)
        step = len(losses)
        assert not found and rise_of(history) is None and may_be_worse_than_at_first(history, step)
        healthy = compared_with_first(history, step, 1.1 * losses[0])
        assert rollback_of(healthy, step, WARMUP) is None
        assert not may_be_worse_than_at_first(healthy, 2 * step - 1) and may_be_worse_than_at_first(healthy, 2 * step)
        assert rollback_of(compared_with_first(history, step, math.nan), step, WARMUP) is None
        worse = compared_with_first(history, step, 1.3 * losses[0])
        rollback = rollback_of(worse, step, WARMUP)
        assert rollback is not None and rollback.cuts_rate and rollback.rate_factor == 1 / 2
        assert targets_of(rollback, [4, 8]) == []
        assert "the loss of the first step's rows rose from" in rollback_report(rollback, 0, RATE).cause
        assert not may_be_worse_than_at_first(after_rollback(StepHistory(), worse, rollback, 0), 0)


@pytest.mark.parametrize("now", [3.4, 2.0, math.nan, math.inf])
def test_a_held_out_loss_that_has_risen_little_or_is_not_finite_is_no_rise(now: float) -> None:
    history, _ = trained(noisy(3.0, 20))
    assert rollback_of(compared_with_base(history, 3.0, now), 20, WARMUP) is None


def test_a_held_out_loss_far_above_that_before_training_sends_the_run_back_to_its_start() -> None:
    history, _ = trained(noisy(3.0, 20))
    worse = compared_with_base(history, 3.0, 3.6)
    rollback = rollback_of(worse, 20, WARMUP)
    assert rollback is not None and rollback.cuts_rate and targets_of(rollback, [8, 16]) == []
    assert rollback_report(rollback, 0, RATE).cause.startswith("eval_loss rose from 3 before training to 3.6, so ")
    assert after_rollback(StepHistory(), worse, rollback, 0).held_out_rise is None
    assert compared_with_base(worse, 3.0, 2.9).held_out_rise is None


def test_a_loss_that_differs_from_batch_to_batch_has_not_risen() -> None:
    """Small losses that double, and single high ones, are no rise."""
    assert lowest_to_measure(trained([*noisy(0.02, 40), *noisy(0.1, 40)])[0], 80) is None
    assert lowest_to_measure(trained([*noisy(2.0, 40), *[1.4, 3.6] * 10])[0], 60) is None


def test_a_run_that_has_changed_nothing_has_nothing_to_go_back_to() -> None:
    history, found = trained([math.nan] * 5)
    assert found == [0, 1, 2, 3, 4] and rollback_of(history, 5, WARMUP) is None


def test_a_checkpoint_older_than_the_suspected_batches_is_preferred() -> None:
    rollback = Rollback(1, 80, 83, (72, 83), 1.0, cuts_rate=False)
    assert targets_of(rollback, [40, 60, 76, 78, 82]) == [60, 40, 76, 78]
    assert targets_of(rollback, [75, 78, 82]) == [75, 78]
    assert targets_of(rollback, [82]) == []


def gone_back(after: list[float]) -> tuple[StepHistory, int]:
    """A run that goes back from step 83 to 60, and then has these losses from step 80 on."""
    losses = noisy(3.0, 80)
    history, step = in_trouble()
    rollback = rollback_of(history, step, WARMUP)
    assert rollback is not None
    earlier, _ = trained(losses[:60])
    history = after_rollback(earlier, history, rollback, 60)
    assert history.steps_again == 23 and history.outliers == 3
    history, _ = trained([*losses[60:], *after], history, 60)
    return history, 80 + len(after)


def test_batches_that_are_outlying_with_earlier_weights_too_are_at_fault() -> None:
    """They are skipped without another rollback, and after 20 in a row the data is blamed."""
    history, step = gone_back([9.0, 9.1, 9.2, 9.3])
    assert history.bad_data and rollback_of(history, step, WARMUP) is None and failure(history, step, RATE) is None
    recovered, _ = gone_back([9.0, 9.1, 9.2, 9.3, 3.0])
    assert not recovered.bad_data and recovered.outliers_in_a_row == 0
    history, step = gone_back([9.0] * MOST_IN_A_ROW)
    reason = failure(history, step, RATE)
    assert reason is not None and reason.endswith("Check the data of steps 81 to 100")


def test_batches_that_are_normal_with_earlier_weights_clear_the_data() -> None:
    history, step = gone_back([3.0, 3.1, 2.9, 9.0, 9.0, 9.0])
    again = rollback_of(history, step, WARMUP)
    assert again is not None and again.number == 2 and again.barred is None


def run_with(losses: list[float], saved: Iterable[int], history: StepHistory | None = None) -> StepHistory:
    """Train all steps, going back as the rules say. Bad batches have their losses with any weights."""
    histories, step = {0: history or StepHistory()}, 0
    history = histories[0]
    while step < len(losses):
        history, _ = trained([losses[step]], history, step)
        step += 1
        histories[step] = history
        assert failure(history, step, RATE) is None, failure(history, step, RATE)
        if (rollback := rollback_of(history, step, WARMUP)) is not None:
            target = next(iter(targets_of(rollback, [one for one in saved if one < step])), 0)
            history, step = after_rollback(histories[target], history, rollback, target), target
    return history


BAD = [*noisy(3.0, 105), *[9.0] * 5, *noisy(3.0, 95), *[9.0] * 5, *noisy(3.0, 60)]


@pytest.mark.parametrize("saved", [(), range(0, 300, 20), range(0, 300, 50)])
def test_each_stretch_of_bad_data_is_left_out_and_the_rate_stays(saved: Iterable[int]) -> None:
    """Without a checkpoint between them, the first stretch comes again after the second rollback."""
    history = run_with(BAD, saved)
    assert history.rollbacks == 2 and history.rate_factor == 1.0 and history.batches_at_fault
    assert [stop for _, stop in history.bad_batches] == [108, 208]
    assert not history.bad_data and history.outliers_in_a_row == 0


def test_bad_data_after_a_loss_that_rose_is_left_out_too() -> None:
    history = run_with(BAD, (), StepHistory(rollbacks=1, rate_factor=0.5))
    assert history.rollbacks == 3 and history.rate_factor == 0.5
    spent = StepHistory(rollbacks=MOST_ROLLBACKS, bad_batches=((4, 9), (40, 50)), batches_at_fault=True)
    history, _ = trained([*noisy(3.0, 80), 9.0, 9.1, 9.2], spent)
    reason = failure(history, 83, RATE)
    assert reason is not None and reason.endswith("Check the data of steps 5 to 9, 41 to 50") and "rate" not in reason
    report = failure_report(history, 83, RATE)
    assert report is not None and report.advice == "check the data of steps 5 to 9, 41 to 50"


def test_trouble_before_the_batches_that_are_left_out_lowers_the_rate() -> None:
    """They were normal the first time, so the weights are at fault."""
    history, step = in_trouble()
    rollback = rollback_of(history, step, WARMUP)
    assert rollback is not None and not rollback.cuts_rate
    history = after_rollback(StepHistory(), history, rollback, 0)
    history, _ = trained([*noisy(3.0, 40), 9.0, 9.1, 9.2], history)
    second = rollback_of(history, 43, WARMUP)
    assert second is not None and second.rate_factor == 0.5 and second.barred is None
    history = after_rollback(StepHistory(), history, second, 0)
    history, _ = trained([*noisy(3.0, 60), 9.0, 9.1, 9.2], history)
    third = rollback_of(history, 63, WARMUP)
    assert third is not None and third.rate_factor == 0.25


def test_what_is_known_of_batches_is_kept_unless_the_steps_have_other_rows() -> None:
    history = StepHistory(rollbacks=2, rate_factor=0.5, barred=(3, 9), bad_batches=((1, 2),), batches_at_fault=True)
    assert with_counts(StepHistory(), history) == history
    other = with_counts(StepHistory(), history, same_rows=False)
    assert other == StepHistory(rollbacks=2, rate_factor=0.5)


def counts(skipped: Iterable[bool], scaling: bool = False, history: StepHistory | None = None) -> StepHistory:
    history = history or StepHistory()
    for step, one in enumerate(skipped):
        history = after_step(history, step, 1.0, None, outlier=None, applied=not one, scaling=scaling)
    return history


def test_twenty_skipped_steps_in_a_row_fail_the_run() -> None:
    assert failure(counts([True] * (MOST_IN_A_ROW - 1)), 19, RATE) is None
    reason = failure(counts([False] * 1000 + [True] * MOST_IN_A_ROW), 1020, RATE)
    assert reason is not None and "the last 20 steps changed nothing" in reason and "learning_rate" in reason
    assert failure(counts([True] * (MOST_IN_A_ROW - 1) + [False]), 20, RATE) is None


def test_half_of_all_steps_skipped_fail_the_run_once_there_are_enough() -> None:
    assert failure(counts([True, False] * (FEWEST_STEPS // 2 - 1)), FEWEST_STEPS - 2, RATE) is None
    reason = failure(counts([True, False] * (FEWEST_STEPS // 2)), FEWEST_STEPS, RATE)
    assert reason is not None and "20 of 40 steps changed nothing" in reason
    assert failure(counts([True, False, False] * 100), 300, RATE) is None


def test_the_search_for_the_loss_scale_is_no_failure() -> None:
    """fp16 begins at 2^16 and skips up to 18 steps on its way to 1; later it tries a larger scale now and then."""
    history = counts([True] * 18, scaling=True)
    assert history.skipped == 0
    history = counts([number % 2 == 1 for number in range(22)], history=history)
    assert failure(history, FEWEST_STEPS, RATE) is None
    assert failure(counts([True] * MOST_IN_A_ROW, scaling=True), 20, RATE) is not None


def test_messages_have_short_sentences() -> None:
    bad, step = gone_back([9.0] * MOST_IN_A_ROW)
    spent, late = in_trouble(MOST_ROLLBACKS, 0.125)
    messages = [
        failure(counts([True] * 20), 20, RATE),
        failure(counts([True, False] * 50), 100, RATE),
        failure(bad, step, RATE),
        failure(spent, late, RATE),
        untrained(7),
        skip_message(3, Outlier("gradients", math.inf), 2.0),
        skip_message(3, Outlier("loss", math.nan), None),
        skip_message(3, Outlier("loss", 9.0, 3.0), None),
        rollback_report(Rollback(1, 80, 83, (72, 83), 1.0, cuts_rate=False), 50, RATE).message,
        rollback_report(Rollback(2, 80, 83, None, 0.5), 0, RATE).message,
        summary(bad, RATE, step),
        summary(spent, RATE, late),
    ]
    for message in messages:
        assert message is not None
        assert max(len(sentence.split()) for sentence in message.split(". ")) <= 25, message
    assert summary(StepHistory(), RATE, 9) is None
    assert f"the model is that of step {step - MOST_IN_A_ROW}" in str(summary(bad, RATE, step))
    assert "its loss is nan" in skip_message(3, Outlier("loss", math.nan), None)
    told = skip_message(3, Outlier("gradients", math.inf), 2.0)
    assert "its gradients are not finite; the loss scale of fp16 is now 2" in told
