"""Data, model, prepared rows, metrics, checkpoints and export on an object store (moto's server on loopback)."""

from __future__ import annotations

import json
import pathlib
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.load import load_spec
from tests.acceptance.conftest import environment, fleetune, started
from tests.acceptance.test_job_submit import free_port


@pytest.fixture(scope="module")
def store() -> Iterator[dict[str, str]]:
    """The variables with which the store is reached; it has a bucket named `lake`."""
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    env = {
        "AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_REGION": "us-east-1",
    }  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(urllib.request.Request(f"{url}/lake", method="PUT"), timeout=5)
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.3)
        yield env
    finally:
        server.terminate()
        server.wait()


def upload(env: dict[str, str], source: pathlib.Path, target: str) -> None:
    _python(env, f"import fsspec; fsspec.filesystem('s3').put({str(source)!r}, {target!r}, recursive=True)")


def _python(env: dict[str, str], code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(**env), capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout


@pytest.mark.slow
def test_a_run_lives_wholly_on_an_object_store(
    store: dict[str, str], workshop: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    upload(store, workshop / "bert", "lake/models/bert")
    upload(store, workshop / "labelled.jsonl", "lake/data/labelled.jsonl")
    spec: dict[str, Any] = {
        "name": "lake",
        "model": {"path": "s3://lake/models/bert", "task": "sequence-classification", "num_labels": 3},
        "data": {"train": "s3://lake/data/*.jsonl", "format": "classification", "eval_fraction": 0.3, "seq_len": 64},
        "train": {"max_steps": 200, "global_batch_size": 8, "per_device_train_batch_size": 4},
        "eval": {"metrics": ["accuracy"]},
        "checkpoint": {"save_steps": 2, "save_total_limit": 1},
        "resources": {"num_workers": 2, "gpus_per_worker": 0},
        "storage_path": "s3://lake/runs",
    }
    file = tmp_path / "job.json"
    file.write_text(json.dumps(spec))
    store = {**store, "HOME": str(tmp_path)}  # nothing of another run lies in the cache of models
    with started(file, **store) as process:
        seen = ""
        assert process.stdout is not None
        for line in process.stdout:
            seen += line
            if "checkpoint of step 2:" in line:
                process.send_signal(signal.SIGINT)
                break
        seen += process.communicate(timeout=120)[0]
    assert process.returncode == 130, seen
    (command,) = {line.split("fleetune ", 1)[1] for line in seen.splitlines() if line.strip().startswith("resume: ")}
    done = fleetune(*shlex.split(command), "--set", "resources.num_workers=1", **store)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "written by 2 workers" in done.stdout
    listed = json.loads(fleetune("runs", "--storage", "s3://lake/runs", "--json", **store).stdout)
    assert [run["status"] for run in listed] == ["succeeded"]
    root = f"s3://lake/runs/{listed[0]['name']}"
    code = (
        "import json; from jobs import storage; from jobs.journal import read_journal\n"
        f"steps = [record['step'] for record in read_journal('{root}/metrics')]\n"
        f"names = [storage.list_names('{root}/' + name) for name in ('model', 'logs', 'checkpoints')]\n"
        "print(json.dumps([steps, *names]))"
    )
    steps, model, logs, checkpoints = json.loads(_python(store, code))
    assert steps == list(range(1, 201))
    assert "model.safetensors" in model and "config.json" in model
    assert logs == ["driver.log", "rank-0.log", "rank-1.log"]
    assert [name for name in checkpoints if name.startswith("step-")] == ["step-00000200"]
    shown = fleetune("show", root, **store)
    assert shown.returncode == 0 and "succeeded" in shown.stdout
    exported = fleetune("export", root, "--to", tmp_path / "model", **store)
    assert exported.returncode == 0, exported.stdout + exported.stderr
    assert (tmp_path / "model/model.safetensors").exists()
    assert load_spec(str(file)).storage_path == "s3://lake/runs"


@pytest.mark.slow
def test_an_unreadable_url_is_told_before_anything_starts(store: dict[str, str], workshop: pathlib.Path) -> None:
    spec = {
        "model": {"path": str(workshop / "llama"), "task": "causal-lm"},
        "data": {"train": "s3://no-such-bucket/text.jsonl", "format": "text", "seq_len": 64},
        "resources": {"gpus_per_worker": 0},
        "storage_path": str(workshop / "unused"),
    }
    file = workshop / "unreadable.json"
    file.write_text(json.dumps(spec))
    done = fleetune("validate", file, timeout=60, **store)
    assert done.returncode == 2
    assert "s3://no-such-bucket/text.jsonl" in done.stderr and "Traceback" not in done.stderr
