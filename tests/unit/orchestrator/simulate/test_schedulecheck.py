"""The independent checker of schedules: accepts a right one, and sees every kind of wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.scheduling.forecast.queue_simulation import Attempt, EndReason
from orchestrator.simulate.trace import schedule_csv
from orchestrator.simulate.values import Setup, Simulated, TraceJob
from tests.support.schedulecheck import check_schedule

COST_S = 60.0
TRACE = """submit_s,duration_s,num_gpus,tenant
0,100,8,a
10,50,4,b
10,40,20,b
20,30,3,c
"""
# On three nodes: job 0 is interrupted at 30 s for job 2, which takes two whole nodes and half of the third.
RIGHT = (
    "0,0.0,30.0,0:8",
    "0,70.0,200.0,0:8",
    "1,10.0,60.0,2:4",
    "2,30.0,70.0,0:8;1:8;2:4",
    "3,70.0,100.0,2:3",
)


def found(folder: Path, *lines: str) -> list[str]:
    (folder / "trace.csv").write_text(TRACE)
    (folder / "schedule.csv").write_text("\n".join(("job,start_s,end_s,placement", *lines, "")))
    return check_schedule(str(folder / "trace.csv"), str(folder / "schedule.csv"), 3, 8, COST_S)


def changed(at: int, *lines: str) -> tuple[str, ...]:
    """RIGHT with one line replaced by others."""
    return (*RIGHT[:at], *lines, *RIGHT[at + 1 :])


def test_right_schedule_is_accepted(tmp_path: Path) -> None:
    assert found(tmp_path, *RIGHT) == []


def test_ends_and_starts_at_one_instant_may_differ_by_rounding(tmp_path: Path) -> None:
    assert found(tmp_path, *changed(3, "2,29.9999999,69.9999999,0:8;1:8;2:4")) == []


@pytest.mark.parametrize(
    ("lines", "violation"),
    [
        (changed(4), "job 3 never runs"),
        (changed(4, "3,70.0,99.9,2:3"), "job 3 runs for 29.900000 s, not 30.000000 s"),
        (changed(1, "0,70.0,140.0,0:8"), "job 0 runs for 100.000000 s, not 160.000000 s"),
        (changed(4, "3,100.0,70.0,2:3"), "line 6: job 3 ends before it starts"),
        (changed(4, "3,19.9,49.9,2:3"), "line 6: job 3 starts before it is submitted"),
        (changed(4, "3,150.0,200.0,2:3", "3,160.0,200.0,1:3"), "line 7: job 3 runs twice at once"),
        (changed(4, "3,70.0,100.0,1:2;2:1"), "line 6: job 3 holds [2, 1] GPUs of its nodes, not [3]"),
        (changed(4, "3,70.0,100.0,2:2"), "line 6: job 3 holds [2] GPUs of its nodes, not [3]"),
        (changed(4, "3,70.0,100.0,3:3"), "line 6: job 3 is on a node that is not there"),
        (changed(4, "3,70.0,100.0,2:1;2:2"), "line 6: job 3 names a node twice"),
        (changed(3, "2,30.0,70.0,0:7;1:7;2:6"), "line 5: job 2 holds [7, 7, 6] GPUs of its nodes, not [8, 8, 4]"),
        (changed(4, "3,60.0,90.0,1:3"), "line 6: node 1 holds 11 GPUs of 8 at 60.000000 s"),
        (changed(4, "3,50.0,80.0,2:3"), "line 6: node 2 holds 11 GPUs of 8 at 50.000000 s"),
        ((*RIGHT, "4,70.0,100.0,1:3"), "job 4 is not in the trace"),
    ],
)
def test_planted_violation_is_found(tmp_path: Path, lines: tuple[str, ...], violation: str) -> None:
    assert violation in found(tmp_path, *lines)


def test_written_schedule_is_by_job_and_start_with_all_digits() -> None:
    start_s = 0.1 + 0.2
    attempts = (
        Attempt(1, 0.0, 5.0, ((0, 8), (2, 1)), EndReason.FINISHED),
        Attempt(0, 9.0, 10.0, ((1, 2),), EndReason.FINISHED),
        Attempt(0, start_s, 1.0, ((1, 2),), EndReason.PREEMPTED, lost_s=60.0),
    )
    simulated = Simulated((TraceJob(0, 1, 2, "a"), TraceJob(0, 5, 9, "a")), attempts, Setup(nodes=3), 0.0)
    assert schedule_csv(simulated).splitlines() == [
        "job,start_s,end_s,placement",
        "0,0.30000000000000004,1.0,1:2",
        "0,9.0,10.0,1:2",
        "1,0.0,5.0,0:8;2:1",
    ]
