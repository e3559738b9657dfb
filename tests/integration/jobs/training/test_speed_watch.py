"""What the speed tests of a gang report. `tests.acceptance.test_planted_failures` has a slow rank in a real gang."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from jobs.remedies.straggler import ENOUGH, Timing
from jobs.training import speed_watch
from jobs.training.speed_watch import SpeedWatch, timing_of


class Events:
    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def event(self, kind: str, message: str, **data: Any) -> None:
        self.told.append((kind, data))


@pytest.fixture
def gang(monkeypatch: pytest.MonkeyPatch) -> list[Timing]:
    """The timings of its ranks, two on each of two nodes. This process is rank 0."""
    timings = [Timing(0.03, 0.03, 0.002)] * 4

    def all_gather(every: list[torch.Tensor], mine: torch.Tensor) -> None:
        for into, timing in zip(every, timings, strict=True):
            into.copy_(torch.tensor([timing.host_s, timing.core_s, timing.gpu_s]))

    places = [("node-a", "a"), ("node-a", "a"), ("node-b", "b"), ("node-b", "b")]
    monkeypatch.setattr(dist, "all_gather", all_gather)
    monkeypatch.setattr(speed_watch, "of_all_ranks", lambda mine: places)
    monkeypatch.setattr(speed_watch, "timing_of", lambda *_: timings[0])
    return timings


def watch(events: Events, **changes: Any) -> SpeedWatch:
    worker = {"rank": 0, "world_size": 4, "node": "node-a", "device": torch.device("cpu"), "mark": lambda _: None}
    return SpeedWatch(SimpleNamespace(**{**worker, **changes}), events, torch.float32)  # type: ignore[arg-type]


def test_the_node_of_a_slow_gpu_is_named_as_faulty_once(gang: list[Timing]) -> None:
    gang[2:] = [Timing(0.03, 0.03, 0.005)] * 2
    events = Events()
    speeds = watch(events)
    for step in range(1, 3 * ENOUGH):
        speeds.compare(step)
    (kind, data), (then, node) = events.told
    assert kind == "remedy" and data["ranks"] == [2, 3] and data["step"] == ENOUGH and data["host"] == "b"
    assert then == "faulty" and node == {"nodes": ["node-b"], "host": "b"}


def test_each_cause_is_told_for_itself(gang: list[Timing]) -> None:
    """A host whose cores others use is not faulty. Its GPU may be, once the cores are free."""
    gang[2:] = [Timing(0.09, 0.03, 0.005), Timing(0.03, 0.03, 0.005)]
    events = Events()
    speeds = watch(events)
    for step in range(ENOUGH):
        speeds.compare(step)
    told = {(kind, tuple(data.get("ranks", ()))) for kind, data in events.told}
    assert told == {("remedy", (2,)), ("remedy", (3,)), ("faulty", ())}
    gang[2] = gang[3]
    events.told.clear()
    for step in range(ENOUGH):
        speeds.compare(step)
    assert [(kind, data.get("ranks")) for kind, data in events.told] == [("remedy", [2]), ("faulty", None)]


def test_only_the_first_rank_of_several_says_when_a_speed_test_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_watch, "EVERY_S", 0.0)
    assert watch(Events()).is_due
    assert not watch(Events(), rank=1).is_due and not watch(Events(), world_size=1).is_due
    monkeypatch.setattr(speed_watch, "EVERY_S", 3600.0)
    assert not watch(Events()).is_due


def test_the_work_of_a_speed_test_takes_under_a_hundredth_of_the_time_between_two() -> None:
    timing = timing_of(torch.device("cpu"), torch.float32)
    assert 0.0 < timing.core_s < 0.01 * speed_watch.EVERY_S and timing.gpu_s is None
