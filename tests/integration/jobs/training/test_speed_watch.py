"""What the speed tests of a gang report. `tests.acceptance.test_planted_failures` has a slow rank in a real gang."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from jobs.remedies.straggler import ENOUGH, FAULTY_AFTER, Cause, Place, Timing
from jobs.training import speed_watch
from jobs.training.speed_watch import SpeedWatch, timing_of
from tests.support.processes import wait_for


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
            gpu_s = math.nan if timing.gpu_s is None else timing.gpu_s
            into.copy_(torch.tensor([timing.host_s, timing.core_s, gpu_s, timing.own_s]))

    places = [Place(f"node-{host}", host, "Xeon") for host in ("a", "a", "b", "b")]
    monkeypatch.setattr(dist, "all_gather", all_gather)
    monkeypatch.setattr(speed_watch, "of_all_ranks", lambda mine: [(place, mine[1]) for place in places])
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


def test_a_host_without_gpu_is_reported_if_it_is_slow_again_and_again(gang: list[Timing]) -> None:
    gang[:] = [Timing(0.03, 0.03)] * 2 + [Timing(0.09, 0.03)] * 2
    events = Events()
    speeds = watch(events)
    for step in range(FAULTY_AFTER[Cause.CORES] * ENOUGH - 1):
        speeds.compare(step)
    assert [kind for kind, _ in events.told] == ["remedy"], "programs of others come and go"
    for step in range(2 * ENOUGH):
        speeds.compare(step)
    assert events.told[1:] == [("faulty", {"nodes": ["node-b"], "host": "b"})]


def test_the_event_of_a_slow_rank_has_its_stack_during_a_step(
    gang: list[Timing], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gang[:] = [Timing(0.09, 0.09), *[Timing(0.03, 0.03)] * 3]
    monkeypatch.setattr(speed_watch, "EVERY_S", 0.0)
    events = Events()
    speeds = watch(events)
    for step in range(ENOUGH - 1):
        speeds.compare(step)
    wait_for(lambda: speeds._stacks, "the stacks of a rank that may be slow")
    assert "most recent call first" in speeds._stacks
    place = '  File "/jobs/training/loop/step.py", line 9 in train_step'
    speeds._stacks = f"Thread 0x1 (most recent call first):\n{place}"
    speeds.compare(ENOUGH)
    ((_, data),) = events.told
    assert data["stack"] == ["train_step (/jobs/training/loop/step.py:9)"]
    said = capsys.readouterr().err
    assert "This rank is slow" in said and place in said


def test_only_the_first_rank_of_several_says_when_a_speed_test_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_watch, "EVERY_S", 0.0)
    assert watch(Events()).is_due
    assert not watch(Events(), rank=1).is_due and not watch(Events(), world_size=1).is_due
    monkeypatch.setattr(speed_watch, "EVERY_S", 3600.0)
    assert not watch(Events()).is_due


def test_the_work_of_a_speed_test_takes_under_a_hundredth_of_the_time_between_two() -> None:
    timing = timing_of(torch.device("cpu"), torch.float32)
    assert 0.0 < timing.core_s < 0.01 * speed_watch.EVERY_S and timing.gpu_s is None
