"""What a node sees of a rank that stands still: a real process, and no Ray."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.remedies.hang import LEAST_S, Doing, Observations, hang_of
from jobs.training.pulse import PulseWriter
from jobs.training.rank_states import as_faulthandler, end_ranks, frames_of_loop, rank_states, waits_in_collective
from tests.support.gangs import ROOT
from tests.support.processes import wait_for

RANK = """
import threading, time
from jobs.remedies.hang import Doing
from jobs.training.pulse import PulseWriter
lock = threading.Lock()
def deadlock():
    lock.acquire()
    lock.acquire()
with PulseWriter("key", 1) as pulse:
    for step in range(1, 4):
        pulse.mark(Doing.STEP, step)
        time.sleep(0.01)
    pulse.mark(Doing.STEP, 4)
    deadlock()
"""


SCOPE = pathlib.Path("/proc/sys/kernel/yama/ptrace_scope")  # other than 0: users may not read their own processes


@pytest.fixture
def stuck(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[bytes]]:
    """A rank in its fourth step, in which it waits for a lock that it holds. Its log is `log`."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("jobs.training.rank_states._STACK_WITHIN_S", 120.0)  # it may stand still before it writes
    program = tmp_path / "jobs" / "training" / "loop" / "stuck.py"
    program.parent.mkdir(parents=True)
    program.write_text(RANK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    with (tmp_path / "log").open("ab") as log:
        process = subprocess.Popen([sys.executable, str(program)], env=environment, stderr=log)
    try:
        wait_for(lambda: any(map(is_in_its_deadlock, rank_states("key", 0.0))), "it is stuck")
        yield process
    finally:
        process.kill()
        process.wait()


def test_held_out_rows_and_general_text_each_have_their_longest_evaluation(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    clock = iter([0.0, 1.0, 4.0, 304.0])
    monkeypatch.setattr("jobs.training.pulse.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with PulseWriter("key", 0) as pulse:
        seen = [pulse_of(tmp_path)]
        for doing in (Doing.EVALUATION, Doing.GENERAL, Doing.OTHER):
            pulse.mark(doing)
            seen.append(pulse_of(tmp_path))
    assert [(one["longest_evaluation_s"], one["longest_general_s"]) for one in seen] == [
        (None, None), (None, None), (3.0, None), (3.0, 300.0),
    ]  # fmt: skip


def pulse_of(folder: pathlib.Path) -> dict[str, Any]:
    (file,) = folder.glob("fleetune-pulse-*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def is_in_its_deadlock(observed: Observations) -> bool:
    frames = observed.second.frames
    return observed.second.pulse.step == 4 and bool(frames) and frames[0].startswith("deadlock (")


def test_a_deadlock_is_seen_with_its_place_logged_and_ended(
    stuck: subprocess.Popen[bytes], tmp_path: pathlib.Path
) -> None:
    (observed,) = rank_states("key", 0.2)
    assert observed.second.pulse.doing is Doing.STEP and observed.second.pulse.pid == stuck.pid
    assert not observed.moved and not observed.waits and observed.is_idle and not observed.is_stopped
    assert (
        observed.second.frames[0].startswith("deadlock (")
        and 0.0 < (observed.second.pulse.longest_step_s or 0.0) < 60.0
    )
    soon = replace(observed, second=replace(observed.second, age_s=LEAST_S / 2))
    assert hang_of([soon], 1) is None, "it has stood still for less than the floor"
    assert stuck.poll() is None, "to ask does not end it"
    end_ranks("key", {stuck.pid: "the stacks"}, {stuck.pid})
    assert stuck.wait(60) == -signal.SIGKILL
    assert (tmp_path / "log").read_text() == "the stacks"
    assert rank_states("key", 0.0) == ()


def test_a_stopped_rank_is_seen_with_its_place_and_only_a_victim_is_killed(
    stuck: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, stuck.pid, os.WSTOPPED | os.WNOWAIT)
    (observed,) = rank_states("key", 0.0)
    assert observed.is_stopped
    if os.geteuid() == 0 or not SCOPE.exists() or SCOPE.read_text().strip() == "0":
        assert is_in_its_deadlock(observed), "py-spy reads the stack that it cannot write"
    with monkeypatch.context() as without:
        without.setattr("jobs.training.rank_states._PY_SPY", pathlib.Path("missing"))
        (observed,) = rank_states("key", 0.0)
    assert observed.is_stopped and observed.second.stack == ""
    end_ranks("other", {}, {stuck.pid})
    end_ranks("key", {}, {stuck.pid + 1})
    time.sleep(0.1)
    assert stuck.poll() is None


def test_a_dump_of_py_spy_is_read_as_one_of_faulthandler() -> None:
    spied = """Process 7: python a.py
Python v3.11.7 (/usr/bin/python3.11)

Thread 7 (idle): "MainThread"
    all_reduce (/site-packages/torch/distributed/distributed_c10d.py:3007)
    train_step (/jobs/training/loop/loop.py:190)
Thread 8 (active): "Thread-1 (reads)"
    Thread.run (/lib/threading.py:982)
"""
    assert waits_in_collective(as_faulthandler(spied))
    assert frames_of_loop(as_faulthandler(spied))[1] == "train_step (/jobs/training/loop/loop.py:190)"
    assert as_faulthandler(spied).count("\n\n") == 1 and as_faulthandler("Error: Permission denied") == ""


COLLECTIVE = """Thread 0x1 (most recent call first):
  File "/lib/threading.py", line 1 in wait

Current thread 0x2 (most recent call first):
  File "/site-packages/torch/distributed/distributed_c10d.py", line 3007 in all_reduce
  File "/jobs/training/loop/loop.py", line 190 in train_step
"""


def test_the_innermost_call_tells_whether_a_rank_waits_for_others() -> None:
    assert waits_in_collective(COLLECTIVE)
    assert frames_of_loop(COLLECTIVE)[1] == "train_step (/jobs/training/loop/loop.py:190)"
    nccl = COLLECTIVE.replace("/site-packages/torch/distributed/distributed_c10d.py", "x.py")
    assert not waits_in_collective(nccl)
    for reads in ("unpack_signals", "_gathered"):
        assert waits_in_collective(nccl.replace("all_reduce", reads))
    assert not waits_in_collective("") and frames_of_loop("") == ()
