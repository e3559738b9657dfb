"""`fleetune upload` and `fleetune gc` on an object store (moto's server on loopback)."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import time
from typing import Any

import pytest

from tests.acceptance.conftest import fleetune
from tests.acceptance.test_s3 import objects
from tests.acceptance.test_s3 import store as store  # a fixture

pytestmark = pytest.mark.slow

MIB = 2**20


def told(done: Any) -> dict[str, Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


def test_upload_sends_only_what_differs_also_of_files_sent_in_parts(
    store: dict[str, str], tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights = folder / "model.safetensors"
    weights.write_bytes(os.urandom(MIB) * 120)  # more than one part
    first = told(fleetune("upload", folder, "s3://lake/up/model", "--json", env=store))
    assert (first["sent"], first["bytes"], first["field"]) == (2, 120 * MIB + 2, "model.path")
    assert objects(store, "up/") == ["up/model/config.json", "up/model/model.safetensors"]
    assert told(fleetune("upload", folder, "s3://lake/up/model", "--json", env=store))["sent"] == 0
    with weights.open("r+b") as file:
        file.seek(100 * MIB)
        file.write(b"other")  # of equal size
    os.utime(weights, (time.time() + 5, time.time() + 5))
    refused = fleetune("upload", folder, "s3://lake/up/model", env=store)
    assert refused.returncode == 2 and "model.safetensors" in refused.stderr
    os.utime(weights)
    again = told(fleetune("upload", folder, "s3://lake/up/model", "--replace", "--json", env=store))
    assert (
        again["sent"] == 2 and told(fleetune("upload", folder, "s3://lake/up/model", "--json", env=store))["sent"] == 0
    )


def test_upload_to_a_bucket_that_is_not_there_or_not_ours_is_told(
    store: dict[str, str], tmp_path: pathlib.Path
) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    done = fleetune("upload", tmp_path / "rows.jsonl", "s3://nobody-s/rows.jsonl", env=store)
    assert done.returncode == 2 and "s3://nobody-s/rows.jsonl" in done.stderr and "Traceback" not in done.stderr


def test_gc_removes_runs_of_an_object_store(store: dict[str, str], tmp_path: pathlib.Path) -> None:
    """Objects are as old as this test, so what is silent counts as alive; what has ended is judged by its outcome."""
    now = datetime.datetime.now(datetime.UTC)
    for name, ended_at, size in (("old", now - datetime.timedelta(minutes=5), 5000), ("new", now, 3000)):
        folder = tmp_path / "runs" / f"{name}-20260101-000000-0001"
        (folder / "checkpoints/step-00000010").mkdir(parents=True)
        (folder / "model").mkdir()
        (folder / "spec.json").write_text("{}")
        (folder / "checkpoints/step-00000010/rank.safetensors").write_bytes(bytes(size))
        (folder / "checkpoints/step-00000010/commit.json").write_text("{}")
        (folder / "model/model.safetensors").write_bytes(bytes(100))
        outcome = {"version": 1, "status": "succeeded", "ended_at": ended_at.isoformat()}
        (folder / "outcome.json").write_text(json.dumps(outcome))
    told(fleetune("upload", tmp_path / "runs", "s3://lake/gc", "--json", env=store))
    before = objects(store, "gc/")
    store = {**store, "FLEETUNE_HOME": str(tmp_path / "home")}
    gc = ("gc", "--storage", "s3://lake/gc")
    size = told(fleetune(*gc, "--json", env=store))["size"]
    assert objects(store, "gc/") == before and size > 8200
    dry = told(fleetune(*gc, "--max-size", f"{size - 4000}B", "--dry-run", "--json", env=store))
    real = told(fleetune(*gc, "--max-size", f"{size - 4000}B", "--json", env=store))
    assert dry["runs"] == real["runs"] and [one["goes"] for one in real["runs"]] == ["checkpoints", "nothing"]
    left = objects(store, "gc/")
    assert set(before) - set(left) == {name for name in before if name.startswith("gc/old") and "checkpoints" in name}
    assert told(fleetune(*gc, "--older-than", "4m", "--json", env=store))["removed"] > 0
    assert [name for name in objects(store, "gc/") if name.startswith("gc/old")] == []
    assert [name for name in objects(store, "gc/") if name.startswith("gc/new")] == [n for n in before if "new" in n]
