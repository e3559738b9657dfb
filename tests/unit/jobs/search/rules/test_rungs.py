"""Successive halving as a rule over what is known of the trials."""

from __future__ import annotations

import pytest

from jobs.search.rules.rungs import going_on, trials_to_clear
from jobs.search.trial import Trial
from tests.support.trials import trial_of

STOPS = [10, 20, 40]


def trials(**scores: list[float]) -> list[Trial]:
    """`t3=[0.5, 0.4]`: trial 3 has these scores at the first stops."""
    return [
        trial_of(
            int(name[1:]),
            "finished" if len(values) == len(STOPS) else "paused",
            list(zip(STOPS, values, strict=False)),
        )
        for name, values in scores.items()
    ]


def test_nothing_is_decided_before_all_have_reached_the_rung() -> None:
    assert going_on(trials(t1=[0.5], t2=[0.4], t3=[]), len(STOPS) - 1, 2, True) == []


@pytest.mark.parametrize(("lower_is_better", "going"), [(True, [3, 2]), (False, [4, 1])])
def test_the_better_half_goes_on_best_first(lower_is_better: bool, going: list[int]) -> None:
    assert going_on(trials(t1=[0.5], t2=[0.4], t3=[0.1], t4=[0.6]), len(STOPS) - 1, 2, lower_is_better) == going


def test_one_that_has_gone_on_takes_its_place_in_the_half() -> None:
    """The rule is asked again whenever a trial has come to a rung: no more may go on than at first."""
    assert going_on(trials(t1=[0.5], t2=[0.4], t3=[0.1, 0.05], t4=[0.6]), len(STOPS) - 1, 2, True) == [2]


def test_a_higher_rung_waits_for_those_that_are_still_to_come_there() -> None:
    both = trials(t1=[0.5], t2=[0.4, 0.3], t3=[0.1, 0.05], t4=[0.6])
    assert going_on(both, len(STOPS) - 1, 2, True) == [3]
    assert going_on(trials(t1=[0.5], t2=[0.4, 0.3], t3=[0.1, 0.05, 0.01], t4=[0.6]), len(STOPS) - 1, 2, True) == []


def test_the_last_one_goes_on_alone() -> None:
    assert going_on(trials(t1=[0.5], t2=[0.4, 0.3]), len(STOPS) - 1, 2, True) == [2]


def test_those_that_were_passed_over_go_on_once_more_trials_have_come_as_far() -> None:
    first = trials(t1=[0.5], t2=[0.4, 0.3, 0.2], t3=[0.6])
    assert going_on(first, len(STOPS) - 1, 2, True) == []
    assert going_on([*first, trial_of(4, "paused", [(10, 0.7)])], len(STOPS) - 1, 2, True) == [1]
    assert going_on([*first, trial_of(4, "paused", [(10, 0.45)])], len(STOPS) - 1, 2, True) == [4]


def test_one_that_fails_after_a_later_rung_is_replaced() -> None:
    some = trials(t1=[0.5], t2=[0.4], t3=[0.1, 0.05], t4=[0.6])
    some[2].state = "failed"
    assert going_on(some, len(STOPS) - 1, 2, True) == [2, 1]


def test_those_that_failed_leave_their_places_to_nobody() -> None:
    some = trials(t1=[0.5], t2=[0.4], t3=[])
    some[2].state = "failed"
    assert going_on(some, len(STOPS) - 1, 2, True) == [2]


def test_who_is_at_the_last_step_is_left_alone() -> None:
    assert going_on(trials(t1=[0.5, 0.4, 0.3]), len(STOPS) - 1, 2, True) == []


RANKED = [
    trial_of(2, "finished"),
    trial_of(5, "finished"),
    trial_of(1, "paused"),
    trial_of(3, "running"),
    trial_of(6, "stopped"),
]
SIZES = {1: 10.0, 2: 10.0, 3: 10.0, 4: 10.0, 5: 10.0, 6: 10.0}


@pytest.mark.parametrize(
    ("most", "removed"), [(60, []), (50, [4]), (41, [4, 6]), (30, [4, 6, 1]), (20, [4, 6, 1, 5]), (1, [4, 6, 1, 5])]
)
def test_checkpoints_of_failed_and_stopped_trials_go_first_and_the_best_stays(most: float, removed: list[int]) -> None:
    """Trial 3 is being trained, and trial 2 is the best: theirs stay, whatever room there is."""
    assert trials_to_clear([*RANKED, trial_of(4, "failed")], SIZES, most) == removed


def test_a_trial_without_checkpoints_gives_no_room() -> None:
    assert trials_to_clear(
        [trial_of(1, "finished"), trial_of(2, "failed"), trial_of(3, "paused")], {1: 5, 2: 0, 3: 5}, 7
    ) == [3]
