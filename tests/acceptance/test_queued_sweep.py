"""The script of docs/queue.md as it stands there, with a server that it brings along; a command scores its models."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.client.discovery import local_server
from orchestrator.client.embedded_server import ClientLock
from tests.support import tiny
from tests.support.gangs import FORKED, ROOT
from tests.support.processes import process_lives, wait_for

SPEC = """\
name: tiny
model: {path: model, task: sequence-classification}
data: {train: texts.csv, format: classification, labels: [bad, dull, good], eval_fraction: 0.2, seq_len: 32}
train: {max_steps: 4, global_batch_size: 4, per_device_train_batch_size: 4}
eval: {metrics: [loss, accuracy]}
resources: {num_workers: 1, gpus_per_worker: 0}
"""
EVALUATE = """\
kind: command
name: evaluate
command: [PYTHON, evaluate.py, texts.csv]
working_dir: .
resources: {num_workers: 2}
"""


def script_of_the_page() -> str:
    found = re.search(r"<!-- snippet -->\n```python\n(.*?)^```", (ROOT / "docs/queue.md").read_text(), re.S | re.M)
    assert found is not None
    return found.group(1)


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("FLEETUNE_")}
    environment = own | {"FLEETUNE_HOME": str(folder / "home"), "PYTHONPATH": FORKED}
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.save_model(tmp_path / "model", "bert")
    with open(tmp_path / "texts.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        rows.writerows((text, ("bad", "dull", "good")[len(text) % 3]) for text in tiny.sentences(60, seed=5))
    (tmp_path / "job.yaml").write_text(SPEC)
    (tmp_path / "evaluate.yaml").write_text(EVALUATE.replace("PYTHON", json.dumps(sys.executable)))
    for name in ("evaluate.py", "classify.py"):
        shutil.copy(ROOT / "examples" / name, tmp_path / name)
    return tmp_path


@pytest.mark.slow
def test_the_script_of_the_page_runs_as_it_stands_and_its_models_are_scored_by_a_command(folder: Path) -> None:
    """The only test of the SDK with real trainings, and of a command that comes after one of them."""
    client_lock = ClientLock(folder / "home")  # the server is not to end between the script and what follows
    done = python(folder, "-c", script_of_the_page())
    assert done.returncode == 0, done.stderr
    lines = dict(line.split() for line in done.stdout.splitlines())
    assert len(lines) == 4 and all(0.1 < float(loss) < 5.0 for loss in lines.values())
    assert {name.rpartition("-")[0] for name in lines} == {f"tiny-lr{rate}" for rate in ("1e-05", "2e-05")}
    found = local_server(folder / "home")
    assert found is not None
    try:
        listed = python(folder, "-m", "orchestrator", "queue", "--all", "--json")
        best = min(json.loads(listed.stdout), key=lambda job: job["metrics"]["eval_loss"])
        scored = python(folder, "-m", "orchestrator", "submit", "evaluate.yaml", "--after", best["job_id"], "--follow")
        assert scored.returncode == 0, scored.stderr
        assert len(re.findall(r"\d+ of 30 are right", scored.stdout)) == 2
    finally:
        client_lock.end()
        os.kill(found.pid, signal.SIGTERM)
        wait_for(lambda: not process_lives(found.pid), "the server ends")
