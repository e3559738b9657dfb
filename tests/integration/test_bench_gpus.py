"""The benchmark for GPUs runs on CPUs too, so that it works where there is a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_benchmark_for_gpus_measures_runs_and_resumes_one() -> None:
    command = [sys.executable, "-m", "bench.gpus", "--cpu", "--only", "zero 3", "zero 3, resumed"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, resumed = map(json.loads, done.stdout.splitlines())
    assert whole["measured_gib"] > 0 and whole["predicted_gib"] > 0 and whole["measured_step_s"] > 0
    assert resumed["right"] and resumed["apart"] <= 1e-6
