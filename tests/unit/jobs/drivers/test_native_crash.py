"""A crash in native code is told from a kill by what the process has written to its log."""

from __future__ import annotations

from pathlib import Path

from jobs.drivers.native_crash import with_signal
from jobs.run.paths import JobPaths
from jobs.training.on_ray.crash import Crash, How

DIED = Crash(How.DIED, "was killed or crashed", rank=1, pid=10506, host="h1")
# As Ray 2.60 and CPython 3.11 write it.
SEGFAULT = """step 3
*** SIGSEGV received at time=1796130849 on cpu 0 ***
PC: @     0x7f5aa6d71859  (unknown)  (unknown)
[2026-12-01 13:14:09,808 E 10506 10506] logging.cc:474: *** SIGSEGV received at time=1796130849 on cpu 0 ***
[2026-12-01 13:14:09,808 E 10506 10506] logging.cc:474: PC: @     0x7f5aa6d71859  (unknown)  (unknown)
Fatal Python error: Segmentation fault

Stack (most recent call first):
  File "/app/own_kernel.py", line 519 in attend
  File "/app/train.py", line 12 in step
"""


def crash_with_log(folder: Path, log: str, crash: Crash = DIED) -> str:
    paths = JobPaths(str(folder))
    (folder / "logs").mkdir(exist_ok=True)
    (folder / "logs/rank-1.log").write_text(log)
    return with_signal(crash, paths).what


def test_a_segmentation_fault_is_named_with_its_place(tmp_path: Path) -> None:
    said = crash_with_log(tmp_path, SEGFAULT)
    assert said == "crashed in native code in attend (/app/own_kernel.py:519) (SIGSEGV; its log has the stacks)"


def test_sigterm_is_named_and_sigkill_leaves_no_word(tmp_path: Path) -> None:
    terminated = "[2026-12-01 13:14:09,808 E 10506 7] logging.cc:474: *** SIGTERM received at time=1796130849 on cpu 0"
    assert crash_with_log(tmp_path, terminated) == "was ended by SIGTERM"
    assert crash_with_log(tmp_path, "step 3\n") == DIED.what


def test_the_crash_of_an_earlier_process_is_not_that_of_this_one(tmp_path: Path) -> None:
    assert crash_with_log(tmp_path, SEGFAULT.replace("10506", "9")) == DIED.what


def test_without_a_log_nothing_is_added(tmp_path: Path) -> None:
    assert with_signal(DIED, JobPaths(str(tmp_path))) == DIED
