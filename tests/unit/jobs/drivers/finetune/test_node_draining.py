"""What a run does when Ray is about to take nodes away."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from jobs.drivers.finetune.node_draining import Draining
from jobs.drivers.stop_request import StopRequest
from jobs.run.paths import JobPaths


class Announced:
    def __init__(self) -> None:
        self.found: list[tuple[str, str, Any]] = []

    def __call__(self, kind: str, message: str, **data: Any) -> None:
        self.found.append((kind, message, data["nodes"]))


@pytest.fixture
def announced() -> Announced:
    return Announced()


def test_a_run_without_a_queue_saves_at_once_and_goes_on(tmp_path: Path, announced: Announced) -> None:
    run = Draining(JobPaths(str(tmp_path)), announced, None, StopRequest())  # type: ignore[arg-type]
    run.look({})
    assert announced.found == []
    run.look({"a": 0.0})
    assert announced.found == [("draining", "Ray takes 1 node away at 00:00:00Z: saving a checkpoint", ["a"])]
    assert Path(JobPaths(str(tmp_path)).save_request).read_bytes() == b"draining"
    run.look({"a": 0.0})
    assert len(announced.found) == 1  # it is known


def test_a_run_of_a_queue_says_so_and_leaves_by_itself_only_where_nobody_says_when(
    tmp_path: Path, announced: Announced, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, stop = [100.0], StopRequest()
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    run = Draining(JobPaths(str(tmp_path)), announced, ["a", "b"], stop)  # type: ignore[arg-type]
    run.look({"c": math.inf})
    assert announced.found == []  # none of its own
    run.look({"a": math.inf, "b": math.inf, "c": math.inf})
    assert announced.found == [("draining", "Ray takes 2 nodes of this run away: it leaves", ["a", "b"])]
    now_s[0] += 14.0
    run.look({})
    assert not stop.asked
    now_s[0] += 2.0
    run.look({})
    run.look({})
    assert stop.source == "node"
    assert not Path(JobPaths(str(tmp_path)).save_request).exists()
