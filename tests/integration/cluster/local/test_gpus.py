"""Drivers of one machine share its GPUs by locks; no GPU is needed to see that."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from cluster.errors import MachinesFailed
from cluster.local.gpus import held_gpus
from tests.support.gangs import ROOT
from tests.support.processes import wait_for

GPUS = ("0", "1", "2", "3")
HOLDS = """
import pathlib, sys, time
from cluster.local.gpus import held_gpus
with held_gpus(2, ("0", "1", "2", "3"), pathlib.Path(sys.argv[1])) as taken:
    print(",".join(taken), flush=True)
    time.sleep(1000)
"""


def test_no_two_hold_the_same_and_they_are_free_again_afterwards(tmp_path: pathlib.Path) -> None:
    with held_gpus(1, GPUS, tmp_path) as one, held_gpus(2, GPUS, tmp_path) as two:
        assert (one, two) == (("0",), ("1", "2"))
        with (
            pytest.raises(MachinesFailed, match="2 GPUs are wanted, and other jobs hold all but 1 of the 4"),
            held_gpus(2, GPUS, tmp_path, wait_s=0.0, say=lambda text: None),
        ):
            pass
    with held_gpus(4, GPUS, tmp_path) as all_of_them:
        assert all_of_them == GPUS
    with held_gpus(0, (), tmp_path) as none:
        assert none == ()


def test_those_of_a_driver_that_was_killed_are_free(tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-c", HOLDS, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "0,1\n"
        with held_gpus(2, GPUS, tmp_path) as taken:
            assert taken == ("2", "3")
        said: list[str] = []
        other.kill()
        with held_gpus(4, GPUS, tmp_path, say=said.append) as taken:
            assert taken == GPUS
    wait_for(lambda: other.poll() is not None, "it has ended")
