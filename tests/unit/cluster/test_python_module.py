"""Modules of ours that are started as programs, in any directory."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from cluster.python_module import module_command

ROOT = Path(__file__).parents[3]


def test_a_file_of_the_working_directory_does_not_run_in_place_of_ours(tmp_path: Path) -> None:
    for name in ("cluster", "jobs", "orchestrator"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('planted')")
    done = subprocess.run(module_command("cluster.text"), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_another_python_gets_the_same_words() -> None:
    assert module_command("jobs.webhook", "x", python=("python3",)) == ("python3", "-P", "-m", "jobs.webhook", "x")


def test_no_part_starts_a_module_without_this_command() -> None:
    starts = re.compile(r'"-m",\s+(?:"(?:cluster|jobs|orchestrator)\b|module)')
    files = [path for room in ("cluster", "jobs", "orchestrator") for path in (ROOT / room).rglob("*.py")]
    assert [path.name for path in files if starts.search(path.read_text())] == ["python_module.py"]
