"""The benchmarks of the queue run as scripts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TRIES = 5  # a machine that stands still for a second is slow once
RESULTS = ["submitting", "submitting_over_http", "admissions", "pages", "restart", "memory", "machine"]


@pytest.mark.slow
def test_the_benchmark_of_the_queue_prints_a_line_for_each_result() -> None:
    """One short round says little of the rates. A server that waits for a lock, or a plan for each job, would show."""
    for _ in range(TRIES):
        command = [sys.executable, "bench/queueing.py", "--smoke"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert [line["result"] for line in lines] == RESULTS
        of = {line["result"]: line for line in lines}
        assert of["memory"]["after_all_mib"] < 1.5 * of["memory"]["after_a_fifth_mib"]
        if is_quick(of):
            return
    pytest.fail(f"it was slow {TRIES} times, the last time: {of}")


def is_quick(of: dict[str, Any]) -> bool:
    return bool(
        of["submitting"]["one_by_one_of_raw"] > 0.1
        and of["submitting_over_http"]["one_by_one_of_raw"] > 0.02
        and of["admissions"]["admitted_per_s"] > 100
        and of["restart"]["first_pass_after_s"] < 5.0
    )


def test_the_benchmark_of_ended_jobs_adds_up_what_tenants_have_used() -> None:
    command = [sys.executable, "-m", "bench.endedjobs", "--smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    of = {line["result"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert of.keys() == {"filled", "pages", "adding_up", "restart", "removing"}
    assert of["adding_up"]["largest_error"] < 0.005 and of["removing"]["removed"] > 0
