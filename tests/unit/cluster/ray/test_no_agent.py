"""The program that takes the place of the dashboard agent in a local Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cluster.ray import no_agent
from tests.support.processes import process_lives, wait_for

RAYLET = """
import subprocess, sys
agent = subprocess.Popen(sys.argv[1:])
print(agent.pid, flush=True)
agent.wait()
"""


def test_it_says_that_it_serves_nothing_and_ends_with_its_raylet(tmp_path: Path) -> None:
    words = [sys.executable, "-c", RAYLET, sys.executable, "-I", "-S", no_agent.__file__, str(tmp_path)]
    with subprocess.Popen(words, env={**os.environ, "RAY_NODE_ID": "5f"}, stdout=subprocess.PIPE, text=True) as raylet:
        assert raylet.stdout is not None
        agent = int(raylet.stdout.readline())
        wait_for(lambda: len(list(tmp_path.glob("*_5f"))) == len(no_agent.NAMES), "all files are there")
        assert process_lives(agent)
        raylet.kill()
        wait_for(lambda: not process_lives(agent), "it has ended")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        f"{name}_5f": "-1" for name in no_agent.NAMES
    }
