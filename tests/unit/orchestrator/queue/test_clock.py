"""The time that decisions go by, while the machine's clock is set, wrong, and put right."""

from __future__ import annotations

import pytest

from orchestrator.queue.clock import SystemClock

START_S, YEAR_S = 1_700_000_000.0, 365 * 86400.0


class Machine:
    """Its clock and the time that really goes by."""

    def __init__(self) -> None:
        self.passed_s, self.off_s, self.said = 0.0, 0.0, list[str]()

    def clock(self, not_before_s: float = 0.0) -> SystemClock:
        return SystemClock(not_before_s, self.said.append, lambda: self.true_s + self.off_s, lambda: self.passed_s)

    @property
    def true_s(self) -> float:
        return START_S + self.passed_s


@pytest.fixture
def machine() -> Machine:
    return Machine()


def test_small_steps_are_followed_and_never_backwards(machine: Machine) -> None:
    clock = machine.clock()
    for off_s in (0.0, 30.0, 0.0, -20.0, 0.0):
        before_s, machine.off_s = clock.now_s(), off_s
        machine.passed_s += 40.0
        assert before_s <= clock.now_s() <= machine.true_s + 31.0
    assert not machine.said


@pytest.mark.parametrize("off_s", [10 * YEAR_S, -10 * YEAR_S])
def test_a_jump_of_an_hour_is_not_followed_and_time_does_not_stand_still(machine: Machine, off_s: float) -> None:
    clock = machine.clock()
    machine.off_s = off_s
    for _ in range(60):
        machine.passed_s += 60.0
        assert clock.now_s() == machine.true_s
    machine.off_s = 0.0
    machine.passed_s += 60.0
    assert clock.now_s() == machine.true_s
    assert len(machine.said) == 2 and "is right again" in machine.said[1]


@pytest.mark.parametrize("off_s", [YEAR_S, -YEAR_S])
def test_a_clock_that_stays_where_it_jumped_to_is_believed_after_two_hours(machine: Machine, off_s: float) -> None:
    clock = machine.clock()
    machine.off_s = off_s
    for _ in range(119):
        machine.passed_s += 60.0
        assert clock.now_s() == machine.true_s
    for _ in range(3):
        machine.passed_s += 60.0
        now_s = clock.now_s()
    assert now_s == machine.true_s + off_s
    assert len(machine.said) == 2 and "followed from now on" in machine.said[1]


def test_each_new_jump_has_to_last_by_itself(machine: Machine) -> None:
    clock = machine.clock()
    for hour in range(10):
        machine.off_s = YEAR_S * (hour + 1)
        machine.passed_s += 3600.0
        assert clock.now_s() == machine.true_s


def test_a_store_that_was_led_in_the_future_is_believed_for_two_hours_at_most(machine: Machine) -> None:
    clock = machine.clock(not_before_s=START_S + 10 * YEAR_S)
    assert clock.now_s() == START_S + 10 * YEAR_S
    machine.passed_s += 60.0
    assert clock.now_s() == START_S + 10 * YEAR_S + 60.0  # it does not stand still
    for _ in range(121):
        machine.passed_s += 60.0
        now_s = clock.now_s()
    assert now_s == machine.true_s


def test_a_server_that_was_away_for_a_week_takes_the_time_of_now_and_one_that_starts_in_1970_does_not() -> None:
    machine = Machine()
    assert machine.clock(START_S - 7 * 86400.0).now_s() == START_S
    machine.off_s = -START_S
    assert machine.clock(START_S - 60.0).now_s() == START_S - 60.0
