"""A run that this machine cannot hold is refused before it has a directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import CapacityError
from cluster.ray.connection import THIS_MACHINE
from jobs.finetune import run_on_ray
from jobs.run.progress import NoProgress
from tests.support import tiny


def test_a_gang_that_is_too_large_for_this_machine_leaves_no_directory(tmp_path: Path) -> None:
    spec = tiny.spec_of(tmp_path / "runs", tmp_path / "model", tmp_path / "text.jsonl", resources__num_workers=60_000)
    with pytest.raises(CapacityError, match="the spec asks for 60,000 workers of 1 CPU, but this machine has"):
        run_on_ray(spec, address=THIS_MACHINE, progress=NoProgress())
    assert not (tmp_path / "runs").exists()
