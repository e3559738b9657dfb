"""A forked worker is the one that Ray would have started: `tests.support.fork_server`."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

from tests.support.forked.fork_request import LOG
from tests.support.gangs import FORKED
from tests.support.processes import wait_for

# Ray's worker by its name alone: what counts is what it finds when it starts.
WORKER = """
import json, os, sys, threading
imported = "ray.train" in sys.modules
from ray import ObjectRef
ids = [ObjectRef.from_random().hex()]
for _ in range(12):
    thread = threading.Thread(target=lambda: ids.append(ObjectRef.from_random().hex()))
    thread.start()
    thread.join()
found = {"imported": imported, "ids": ids, "words": sys.argv[1:], "variables": dict(os.environ), "folder": os.getcwd()}
print(json.dumps(found))
sys.exit(7)
"""

# What imports of lm_eval and DeepSpeed have set in this process, if other tests ran before, says nothing of a worker.
SET = {"HF_XET_HIGH_PERFORMANCE": "1", "DS_ACCELERATOR": "cpu"}


def test_workers_with_ray_imported_draw_different_ids_and_have_what_they_were_started_with(
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "default_worker.py").write_text(WORKER)
    log, found = tmp_path / "log", list[dict[str, object]]()
    wait_for(lambda: os.path.exists(f"{os.environ['FLEETUNE_TESTS_FORK_SERVER']}.json"), "the server listens")
    for job in ("01000000", "02000000", "03000000"):
        own = {"PYTHONPATH": FORKED, LOG: str(log), "RAY_JOB_ID": job, "RAY_RAYLET_PID": str(os.getpid()), **SET}
        command = [sys.executable, str(tmp_path / "default_worker.py"), "--of", job]
        ended = subprocess.run(command, env={**os.environ, **own}, cwd=tmp_path, capture_output=True, text=True)
        assert ended.returncode == 7, ended.stderr
        found.append(json.loads(ended.stdout))
        assert found[-1]["imported"] and found[-1]["words"] == ["--of", job]
        assert found[-1]["folder"] == str(tmp_path)
        variables = found[-1]["variables"]
        assert isinstance(variables, dict) and own.items() <= variables.items()
    assert log.read_text().splitlines() == ["default_worker.py 7"] * 3
    ids = [one for each in found if isinstance(each["ids"], list) for one in each["ids"]]
    assert len(set(ids)) == len(ids) == 3 * 13
