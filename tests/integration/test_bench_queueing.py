"""bench/queueing.py runs as a script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ["submitting", "submitting_over_http", "admissions", "pages", "restart", "memory", "machine"]


def test_the_benchmark_of_the_queue_prints_a_line_for_each_result() -> None:
    command = [sys.executable, "bench/queueing.py", "--smoke"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["result"] for line in lines] == RESULTS
    found = {name: value for line in lines for name, value in line.items()}
    assert found["one_by_one_of_raw"] > 0.1 and found["admitted_per_s"] > 100 and found["first_pass_after_s"] < 5.0
