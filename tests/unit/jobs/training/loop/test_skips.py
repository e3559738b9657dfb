"""A run whose steps change nothing fails with a reason; the search for fp16's loss scale is no failure."""

from __future__ import annotations

from collections.abc import Iterable

from jobs.training.loop.skips import FEWEST_STEPS, MOST_IN_A_ROW, Skips, skip_message, untrained


def after(skipped: Iterable[bool], scaling: bool = False) -> Skips:
    skips = Skips()
    for one in skipped:
        skips = skips.after(one, scaling)
    return skips


def test_twenty_skipped_steps_in_a_row_fail_the_run() -> None:
    assert after([True] * (MOST_IN_A_ROW - 1)).failure() is None
    failure = after([False] * 1000 + [True] * MOST_IN_A_ROW).failure()
    assert failure is not None and "the last 20 steps changed nothing" in failure and "learning_rate" in failure
    assert after([True] * (MOST_IN_A_ROW - 1) + [False]).failure() is None


def test_half_of_all_steps_skipped_fail_the_run_once_there_are_enough() -> None:
    assert after([True, False] * (FEWEST_STEPS // 2 - 1)).failure() is None
    failure = after([True, False] * (FEWEST_STEPS // 2)).failure()
    assert failure is not None and "20 of 40 steps changed nothing" in failure
    assert after([True, False, False] * 100).failure() is None


def test_the_search_for_the_loss_scale_is_no_failure() -> None:
    """fp16 begins at 2^16 and skips up to 18 steps on its way to 1; later it tries a larger scale now and then."""
    skips = after([True] * 18, scaling=True)
    for number in range(22):
        skips = skips.after(number % 2 == 1, scaling=False)
    assert skips.steps == FEWEST_STEPS and skips.failure() is None
    assert after([True] * MOST_IN_A_ROW, scaling=True).failure() is not None


def test_messages_have_short_sentences() -> None:
    failures = [after([True] * 20).failure(), after([True, False] * 50).failure(), untrained(7)]
    messages = [*failures, skip_message(3, True, 1.0, 2.0), skip_message(3, False, float("nan"), None)]
    for message in messages:
        assert message is not None
        assert max(len(sentence.split()) for sentence in message.split(". ")) <= 25
    assert "its loss is nan" in skip_message(3, False, float("nan"), None)
    assert "its gradients are not finite; the loss scale of fp16 is now 2" in skip_message(3, True, 1.0, 2.0)
