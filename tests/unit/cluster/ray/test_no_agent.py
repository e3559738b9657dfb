"""The program that takes the place of the dashboard agent in a local Ray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cluster.ray import no_agent
from tests.support.processes import process_lives, wait_for

RAYLET = """
import subprocess, sys
open("/proc/self/comm", "w").write(sys.argv.pop(1))
agent = subprocess.Popen(sys.argv[1:])
print(agent.pid, flush=True)
agent.wait()
"""


def words(name: str, folder: Path) -> list[str]:
    return [sys.executable, "-c", RAYLET, name, sys.executable, "-P", "-S", no_agent.__file__, str(folder), "5f"]


def test_if_its_raylet_has_ended_before_it_began_it_ends(tmp_path: Path) -> None:
    assert subprocess.run(words("init", tmp_path), stdout=subprocess.DEVNULL, timeout=60).returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_it_says_that_it_serves_nothing_and_ends_with_its_raylet(tmp_path: Path) -> None:
    with subprocess.Popen(words("raylet", tmp_path), stdout=subprocess.PIPE, text=True) as raylet:
        assert raylet.stdout is not None
        agent = int(raylet.stdout.readline())
        wait_for(lambda: len(list(tmp_path.glob("*_5f"))) == len(no_agent.NAMES), "all files are there")
        assert process_lives(agent)
        raylet.kill()
        wait_for(lambda: not process_lives(agent), "it has ended")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        f"{name}_5f": "-1" for name in no_agent.NAMES
    }
