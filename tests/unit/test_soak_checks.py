"""Each check of a soak finds what is wrong where something is, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.queue.states import Reason, State
from tests.soak.checks import (
    BEGINS,
    ENDS,
    Beat,
    Cut,
    Fate,
    Happened,
    Holding,
    Seen,
    ends,
    gone_back,
    histories,
    leftovers,
    over_capacity,
    redone,
    steps,
    tracebacks,
    two_at_once,
    two_drivers,
)

FATE = Fate("j", 2)
DONE = Seen("j", State.SUCCEEDED, Reason.FINISHED, 2)


def beats(attempt: int, from_s: float, to_s: float, rank: int = 0, host: str = "a") -> list[Beat]:
    first = Beat("j", attempt, rank, host, 100 + attempt, from_s, BEGINS)
    return [first, replace(first, at_s=(from_s + to_s) / 2, what="lives"), replace(first, at_s=to_s, what=ENDS)]


def events(*kinds: str) -> list[Happened]:
    return [Happened("j", number, kind) for number, kind in enumerate(kinds)]


def test_attempts_one_after_the_other_are_fine_and_ranks_of_one_may_overlap() -> None:
    assert two_at_once([*beats(1, 0.0, 5.0), *beats(1, 1.0, 6.0, rank=1), *beats(2, 6.5, 9.0)]) == []


def test_two_attempts_at_once_are_found_even_on_two_hosts() -> None:
    (found,) = two_at_once([*beats(1, 0.0, 5.0), *beats(2, 4.5, 9.0, host="b")])
    assert "attempt 2 began 0.50 s before attempt 1" in found
    assert two_at_once([*beats(3, 0.0, 1.0), *beats(1, 0.5, 0.7)]) != []


def test_what_nobody_could_end_does_not_count_while_its_host_was_cut_off() -> None:
    seen = [*beats(1, 0.0, 5.0), *beats(2, 4.5, 9.0, host="b")]
    assert two_at_once(seen, [Cut("a", 2.0, 6.0)]) == []
    assert two_at_once(seen, [Cut("b", 2.0, 4.6)]) == []
    assert two_at_once(seen, [Cut("a", 5.5, 6.0)]) != []


def test_an_attempt_that_starts_a_rank_twice_is_found() -> None:
    (found,) = two_at_once([*beats(1, 0.0, 1.0), *beats(1, 2.0, 3.0)])
    assert "attempt 1 has started rank 0 2 times" in found


def test_two_drivers_of_one_job_are_found() -> None:
    assert two_drivers([("j", 1), ("k", 2), ("k", 2)]) == []
    assert two_drivers([("j", 1), ("j", 2)]) == ["j: drivers of attempts [1, 2] live"]


def test_leases_beyond_a_node_s_cpus_are_found() -> None:
    assert over_capacity([Holding("a", 2, 2), Holding("gone", 0, 2)]) == []
    assert over_capacity([Holding("a", 2, 3)]) == ["a: 3 of 2 CPUs are leased"]


def test_a_job_that_leaves_its_end_or_loses_an_attempt_or_is_lost_is_found() -> None:
    running = Seen("j", State.RUNNING, Reason.ANSWERED, 2)
    assert gone_back({}, [running]) == gone_back({"j": running}, [DONE]) == gone_back({"j": DONE}, [DONE]) == []
    assert gone_back({"j": DONE}, [replace(running, attempt=3)]) != []
    assert gone_back({"j": running}, [replace(running, attempt=1)]) != []
    assert gone_back({"j": running}, []) != []


LIFE = ("queued", "starting", "asked", "running", "stopping", "queued", "starting", "running", "succeeded")


def test_a_history_with_one_end_and_a_start_for_each_attempt_is_fine() -> None:
    assert histories(events(*LIFE), [DONE]) == []


@pytest.mark.parametrize(
    ("kinds", "job"),
    [
        ((*LIFE, "succeeded"), DONE),
        ((*LIFE, "queued"), DONE),
        (LIFE[:-1], DONE),
        (LIFE, replace(DONE, state=State.FAILED)),
        (LIFE, replace(DONE, attempt=3)),
    ],
)
def test_a_history_with_two_ends_or_none_or_too_few_starts_is_found(kinds: tuple[str, ...], job: Seen) -> None:
    assert histories(events(*kinds), [job]) != []


def test_a_job_that_did_what_it_was_to_do_may_succeed() -> None:
    both = [*beats(2, 0.0, 1.0), *beats(2, 0.0, 1.0, rank=1)]
    assert ends([DONE], [FATE], both) == []
    assert ends([DONE], [Fate("j", None)], []) == []


@pytest.mark.parametrize(
    ("job", "fate"),
    [
        (DONE, FATE),  # of its two ranks only one has ended
        (DONE, Fate("j", 1, exit_code=3)),
        (replace(DONE, state=State.RUNNING), FATE),
        (Seen("other", State.SUCCEEDED, Reason.FINISHED, 1), FATE),
        (replace(DONE, state=State.CANCELLED, reason=Reason.CANCELLED), FATE),
        (replace(DONE, state=State.FAILED, reason=Reason.RUN_FAILED), FATE),
        (replace(DONE, state=State.FAILED, reason=Reason.BAD_INPUT), replace(FATE, exit_code=3)),
        (replace(DONE, state=State.FAILED, reason=Reason.DRIVER_LOST), FATE),
    ],
)
def test_an_end_that_may_not_be_is_found(job: Seen, fate: Fate) -> None:
    assert len(ends([job], [fate], beats(2, 0.0, 1.0))) == 1


@pytest.mark.parametrize(
    ("job", "fate"),
    [
        (replace(DONE, state=State.CANCELLED, reason=Reason.CANCELLED), replace(FATE, asked_to_cancel=True)),
        (replace(DONE, state=State.FAILED, reason=Reason.RUN_FAILED), replace(FATE, exit_code=3)),
        (replace(DONE, state=State.FAILED, reason=Reason.RUN_FAILED), replace(FATE, program_killed=True)),
        (replace(DONE, state=State.FAILED, reason=Reason.DRIVER_LOST, attempt=6), FATE),
    ],
)
def test_an_end_that_was_brought_about_is_fine(job: Seen, fate: Fate) -> None:
    assert ends([job], [fate], []) == []


def test_steps_in_their_order_are_fine_and_after_a_hard_kill_some_may_come_again() -> None:
    assert steps("r", [1, 2, 3, 4], 2, hard=False, total=4) == []
    assert steps("r", [1, 2, 3, 4, 3, 4, 5], 2, hard=True, total=5) == []
    assert redone([1, 2, 3, 4, 3, 4, 5]) == 2


@pytest.mark.parametrize(
    ("recorded", "hard", "total"),
    [
        ([1, 2, 2, 3], False, None),  # twice, and nothing was killed
        ([1, 2, 4], True, None),
        ([2, 3], True, None),
        ([1, 2, 3, 4, 5, 6, 2], True, None),  # further back than to a checkpoint
        ([1, 2, 3], False, 4),
        ([], False, 4),
    ],
)
def test_steps_that_are_missing_or_come_again_are_found(recorded: list[int], hard: bool, total: int | None) -> None:
    assert len(steps("r", recorded, 2, hard, total)) == 1


def test_whatever_is_left_at_the_end_is_found() -> None:
    assert leftovers([Holding("a", 2, 0)], 0, {"a": 0.0}, [], (4, 4)) == []
    found = leftovers([Holding("a", 2, 1)], 3, {"a": 1.0}, ["driver 7"], (2, 4))
    assert len(found) == 5 and "a process is left: driver 7" in found


def test_a_traceback_in_the_log_is_found_with_what_it_says() -> None:
    assert tracebacks("all is well\n") == []
    log = "x\nTraceback (most recent call last):\n  File y\n    z()\nValueError: no\nx\n"
    assert tracebacks(log) == ["the server's log has a traceback: ValueError: no"]
    assert len(tracebacks("Traceback (most recent call last):\n  File y\n")) == 1
