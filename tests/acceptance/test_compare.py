"""A comparison of methods on a real Ray: an interruption repeats no method that has ended, and the table is whole."""

from __future__ import annotations

import json
import pathlib
import signal
import subprocess
from typing import Any

import pytest

from tests.acceptance.conftest import FLEETUNE, environment, fleetune
from tests.support import tiny
from tests.support.hold import Hold
from tests.support.sharedcluster import files_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def compare(tmp_path: pathlib.Path) -> pathlib.Path:
    """Its file: two rates for each method, and two seeds for the best of them."""
    tiny.save_model(tmp_path / "llama", "llama")
    tiny.write_text(tmp_path / "text.jsonl", 80)
    tiny.write_text(tmp_path / "general.jsonl", 20, seed=5)
    base = {
        "model": {"path": "llama", "task": "causal-lm"},
        "data": {"train": "text.jsonl", "format": "text", "eval_fraction": 0.2, "seq_len": 32},
        "train": {"max_steps": 4, "global_batch_size": 4, "per_device_train_batch_size": 4},
        "eval": {"general": "general.jsonl"},
        "resources": {"num_workers": 1, "gpus_per_worker": 0},
        "storage_path": "runs",
    }
    compared = {
        "kind": "compare",
        "base": base,
        "methods": ["full", {"name": "lora-r2", "method": "lora", "lora": {"rank": 2}}],
        "space": {"learning_rate": [1e-3, 1e-2]},
        "algorithm": "grid",
        "seeds": 2,
        "num_gangs": 1,
    }
    (tmp_path / "compare.json").write_text(json.dumps(compared))
    return tmp_path / "compare.json"


def interrupted(compare: pathlib.Path, at: str) -> tuple[int, str]:
    """Run until a line has this text, press Ctrl-C, and return the exit code and the output.

    The second method is held before its first step until it is asked to stop.
    """
    lines, hold = [], Hold(compare.parent)
    hold.at(0, "methods/lora-r2")
    command = [str(FLEETUNE), "run", str(compare)]
    with subprocess.Popen(
        command, env=environment(**hold.environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            lines.append(line)
            if at in line:
                run.send_signal(signal.SIGINT)
    return run.returncode, "".join(lines)


def test_an_interrupted_comparison_goes_on_with_the_methods_that_have_not_ended(compare: pathlib.Path) -> None:
    code, output = interrupted(compare, "method 2 of 2: lora-r2")
    assert code == 130, output
    (root,) = (compare.parent / "runs").glob("compare-*")
    assert f"fleetune run --resume {root}" in output
    before = files_of(root / "methods/full")
    done = fleetune("run", "--resume", root)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "full has succeeded before" in done.stdout and "method 2 of 2: lora-r2" in done.stdout
    assert files_of(root / "methods/full") == before

    found: dict[str, Any] = json.loads((root / "comparison.json").read_text())
    full, lora = found["methods"]
    assert [one["name"] for one in (full, lora)] == ["full", "lora-r2"]
    assert full["trained"] == full["parameters"] and 0 < lora["trained"] < full["trained"] / 5
    assert lora["checkpoint_bytes"] < full["checkpoint_bytes"]
    for one in (full, lora):
        assert one["status"] == "succeeded" and one["trials"] == 4, "two rates, and another seed of each"
        assert len(one["metrics"]["eval_loss"]["values"]) == 2 and one["general_change"] is not None
        assert one["values"]["learning_rate"] in (1e-3, 1e-2)
        assert min(one[name] for name in ("peak_memory_bytes", "run_s", "tokens_per_s", "device_hours")) > 0
    assert "lora-r2 (rank 2)" in done.stdout and (root / "comparison.html").exists()
    shown = fleetune("show", root)
    assert "lora-r2 (rank 2)" in shown.stdout and "full, lora-r2" in shown.stdout
