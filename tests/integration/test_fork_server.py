"""Workers that tests fork are as different from each other as those that Ray starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.support.gangs import ROOT

WORKERS, IDS, THREADS = 3, 100, 100
FORKS = f"""
import json, os, threading
from tests.support.fork_server import import_ray, pass_over_ids
import_ray({{}})
from ray._raylet import NodeID

def ids():
    found = [NodeID.from_random().hex() for _ in range({IDS})]
    for _ in range({THREADS}):
        thread = threading.Thread(target=lambda: found.append(NodeID.from_random().hex()))
        thread.start()
        thread.join()
    return found

drawn = []
for _ in range({WORKERS}):
    read, write = os.pipe()
    if not os.fork():
        with os.fdopen(write, "w") as end:
            json.dump(ids(), end)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as end:
        drawn += json.load(end)
    os.wait()
    pass_over_ids()
print(json.dumps(drawn))
"""


def test_no_two_forked_workers_draw_the_same_ids_of_ray() -> None:
    """Else a worker may read an object of another one in place of its own: rows, for one."""
    done = subprocess.run(
        [sys.executable, "-c", FORKS], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    drawn = json.loads(done.stdout.splitlines()[-1])
    assert len(set(drawn)) == len(drawn) == WORKERS * (IDS + THREADS)
