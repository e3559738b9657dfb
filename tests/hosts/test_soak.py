"""A minute of `make soak`, with few jobs: that the soak itself works, and that nothing is wrong so soon."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.gangs import ROOT
from tests.support.hosts import available

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not available(), reason="needs root, iproute2 and util-linux to make hosts"),
]

FEWEST_CHECKS = 20  # beside one of each job: 9 are made at the end, and 3 with each look before
SEED = 7  # whose minute pauses a job and kills a driver, the server and a worker


@pytest.mark.timeout(900)
def test_a_minute_of_faults_leaves_every_job_with_one_end_and_nothing_on_the_cluster() -> None:
    """The only one with faults of several kinds among several jobs; the checks of a soak are made all the while."""
    words = ["-m", "tests.soak", "--seed", str(SEED), "--minutes", "1", "--submit-until-s", "10", "--hold"]
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["violations"] == [] and sum(told["faults"].values()) >= 3
    assert told["checks"] > FEWEST_CHECKS + sum(told["jobs"].values())
    assert sum(told["jobs"].values()) >= 4
