"""When a group hangs, and which rank is to blame."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.remedies.hang import Doing, Observations, Pulse, RankState, hang_of


def rank(number: int, age_s: float = 12.0, cpu_share: float = 0.0, state: str = "S", **changes: Any) -> Observations:
    """A rank that has been in its fifth step for `age_s`, where the longest step took half a second."""
    waits, moved = changes.pop("waits", True), changes.pop("moved", False)
    given: dict[str, Any] = {"rank": number, "pid": 100 + number, "doing": Doing.STEP, "step": 5, "longest_step_s": 0.5}
    pulse = Pulse(**given | changes)
    first = RankState(pulse, "n1", age_s - 2.0, state, 50.0, waits)
    later = Pulse(**{**vars(pulse), "since_s": 1.0}) if moved else pulse
    return Observations(first, RankState(later, "n1", age_s, state, 50.0 + 2.0 * cpu_share, waits), 2.0)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (rank(1, waits=False), "waits, but not for other ranks"),
        (rank(1, waits=False, state="T"), "is stopped by a signal"),
        (rank(1, waits=False, state="T", doing=Doing.DATA), "is stopped by a signal"),
        (rank(1, age_s=70.0, waits=False, cpu_share=1.0), "computes and never finishes"),
        (rank(1, waits=False, doing=Doing.EVALUATION, longest_evaluation_s=3.0), "waits, but not for other ranks"),
        (rank(1, waits=False, doing=Doing.GENERAL, longest_general_s=3.0), "waits, but not for other ranks"),
    ],
)
def test_the_rank_outside_of_the_collective_is_to_blame(other: Observations, why: str) -> None:
    found = hang_of([rank(0, age_s=other.second.age_s), other], 2)
    assert found is not None and found.rank.pulse.rank == 1 and found.why == why


@pytest.mark.parametrize(
    ("other", "meaning"),
    [
        (rank(1, waits=False, moved=True), "it goes on: its metrics are late"),
        (rank(1, age_s=9.0, waits=False), "no silence under the floor is a hang"),
        (rank(1, waits=False, longest_step_s=5.0), "three times the longest step"),
        (rank(1, waits=False, longest_step_s=None), "the first step"),
        (rank(1, age_s=3600.0, waits=False, doing=Doing.DATA), "it waits for rows"),
        (rank(1, age_s=3600.0, waits=False, doing=Doing.OTHER), "it writes a checkpoint or exports"),
        (rank(1, age_s=3600.0, waits=False, doing=Doing.EVALUATION), "the first evaluation"),
        (rank(1, age_s=12.0, waits=False, doing=Doing.EVALUATION, longest_evaluation_s=5.0), "a long evaluation"),
        (rank(1, age_s=300.0, waits=False, doing=Doing.GENERAL, longest_evaluation_s=3.0), "the first of general text"),
        (
            rank(1, age_s=300.0, waits=False, doing=Doing.EVALUATION, longest_general_s=3.0),
            "the first of held-out rows",
        ),
        (rank(1, waits=False, cpu_share=1.0), "a slow step on a busy machine"),
        (rank(1, waits=False, state="R"), "a slow step on a machine that is overloaded"),
        (rank(1), "all wait: a slow network"),
        (rank(1, state="t", doing=Doing.OTHER), "a debugger holds it"),
    ],
)
def test_a_group_that_may_be_healthy_is_left_alone(other: Observations, meaning: str) -> None:
    assert hang_of([rank(0, age_s=max(other.second.age_s, 12.0)), other], 2) is None, meaning


def test_nothing_is_decided_while_a_rank_is_missing() -> None:
    assert hang_of([rank(1, waits=False)], 2) is None
    assert hang_of([], 2) is None


def test_the_lowest_rank_is_killed_if_all_wait_for_each_other() -> None:
    found = hang_of([rank(1, age_s=61.0), rank(0, age_s=61.0)], 2)
    assert found is not None and (found.rank.pulse.rank, found.why) == (0, "waits for ranks that wait as well")
    assert not found.is_to_blame, "the connection between any two of them may be at fault"
