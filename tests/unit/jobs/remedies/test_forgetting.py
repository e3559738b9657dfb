"""What a run does when its loss on general text rises: bounds, the number of cuts, and what it says."""

from __future__ import annotations

import math

import pytest

from cluster.errors import DataError
from jobs.planning.replay import ReplayRaise
from jobs.remedies.forgetting import (
    MOST_TIMES,
    Act,
    act_of,
    check_base,
    format_rate,
    format_replay,
    has_room,
    is_past_bound,
    rate_factor,
    return_report,
    stop_report,
    times_gone_back,
)
from jobs.run.checkpoints import Best
from jobs.run.metric_names import GENERAL_LOSS
from jobs.spec.remedies import Forgetting

BEFORE = {GENERAL_LOSS: 4.0, "eval_loss": 3.0}
LOWER, STOP = Forgetting(max_general_loss_increase=0.02), Forgetting(max_general_loss_increase=0.02, action="stop")
REPLAY = Forgetting(max_general_loss_increase=0.02, action="raise_replay")
BEST = Best(metric="eval_loss", greater_is_better=False, step=20, score=2.0)


def after(loss: float) -> dict[str, float]:
    return {GENERAL_LOSS: loss, "eval_loss": 2.0}


@pytest.mark.parametrize(
    ("loss", "past"), [(3.0, False), (4.0, False), (4.079, False), (4.09, True), (math.inf, True), (math.nan, True)]
)
def test_the_bound_is_a_share_of_the_first_value_and_a_loss_that_is_no_number_is_past_it(
    loss: float, past: bool
) -> None:
    assert is_past_bound(LOWER, BEFORE, after(loss)) is past


def test_without_a_bound_or_without_both_values_nothing_is_past_it() -> None:
    assert not is_past_bound(Forgetting(), BEFORE, after(40.0))
    assert not is_past_bound(LOWER, BEFORE, {"eval_loss": 2.0}) and not is_past_bound(LOWER, {}, after(40.0))


def test_a_bound_needs_a_base_loss_that_is_a_positive_number() -> None:
    for loss in (0.0, math.inf, math.nan):
        with pytest.raises(DataError, match="max_general_loss_increase has no meaning"):
            check_base(LOWER, {GENERAL_LOSS: loss})
        check_base(Forgetting(), {GENERAL_LOSS: loss})
    check_base(LOWER, BEFORE)


def test_a_state_has_room_if_it_has_used_at_most_half_of_the_bound() -> None:
    assert [has_room(LOWER, BEFORE, after(loss)) for loss in (3.9, 4.039, 4.041, 4.079)] == [True, True, False, False]
    assert has_room(Forgetting(), BEFORE, after(40.0))


def test_the_rate_is_halved_three_times_and_then_the_run_stops() -> None:
    assert [act_of(LOWER, BEFORE, after(5.0), cuts) for cuts in range(5)] == [Act.GO_BACK] * 3 + [Act.STOP] * 2
    assert [rate_factor(cuts) for cuts in range(MOST_TIMES + 1)] == [1.0, 0.5, 0.25, 0.125]
    assert act_of(STOP, BEFORE, after(5.0), 0) is Act.STOP
    assert act_of(LOWER, BEFORE, after(4.0), 0) is act_of(STOP, BEFORE, after(4.0), MOST_TIMES) is None


def test_the_share_of_replay_is_raised_three_times_and_then_the_run_stops() -> None:
    acts = [act_of(REPLAY, BEFORE, after(5.0), times) for times in range(5)]
    assert acts == [Act.GO_BACK] * 3 + [Act.STOP] * 2
    raises = (ReplayRaise(step=4, times=1), ReplayRaise(step=9, times=3))
    assert [times_gone_back(rule, 2, raises) for rule in (REPLAY, LOWER, STOP)] == [3, 2, 2]
    assert times_gone_back(REPLAY, 2, ()) == 0


def test_the_acts_name_their_cause_their_effect_and_what_to_change() -> None:
    how = format_rate(5e-6)
    told = return_report(LOWER, BEFORE, after(4.2), step=30, target=20, how=how, advice="lower the rate")
    assert told.message == (
        "the loss on general text is 4.2 after step 30, 5.0% above the 4 before training "
        "(remedies.forgetting.max_general_loss_increase is 0.02). Remedy: the run goes back to the checkpoint of "
        "step 20 and continues with a learning rate of at most 5e-06; 10 steps are computed again"
    )
    assert (told.remedy, told.advice, told.steps_again) == ("forgetting", "lower the rate", 10)
    how = format_replay(0.05, 0.136)
    restarted = return_report(REPLAY, BEFORE, after(4.2), step=30, target=0, how=how, advice="more replay")
    assert restarted.action == (
        "the run goes back to the start and continues with 13.6% of the training rows from sources for replay, instead "
        "of 5.0%"
    )
    ended = stop_report(STOP, BEFORE, after(4.2), step=30, total=100, best=BEST)
    assert ended.action == "training ends after step 30 of 100"
    assert ended.effect.startswith("the checkpoint of step 20 is exported")
    assert "train.learning_rate" in str(ended.advice)
    assert "no evaluation was within the bound" in stop_report(STOP, BEFORE, after(4.2), 30, 100, None).effect
