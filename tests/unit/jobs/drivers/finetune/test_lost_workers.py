"""What a driver does and says when its workers are lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import MachinesFailed, RunFailed
from jobs.drivers.finetune import lost_workers
from jobs.drivers.finetune.lost_workers import LostWorkers
from jobs.run.paths import JobPaths
from jobs.run.remedies import troubles_of
from jobs.training.on_ray.crash import Crash, How

CRASH = Crash(How.DIED, "was killed or crashed", rank=1, host="h1")
AT = "2026-11-30T12:00:00+00:00"


class Run:
    """A driver's losses, the events that it tells, and a clock."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, places: tuple[str, ...] | None = None) -> None:
        self.events: list[dict[str, Any]] = []
        self.now_s, self.saved = 100.0, 0
        for name in ("newest_step", "newest_step_if_known"):
            monkeypatch.setattr(lost_workers, name, lambda paths: self.saved)
        paths: Any = JobPaths(str(folder))
        self.losses = LostWorkers(paths, self._announce, places, lambda: self.now_s)  # type: ignore[arg-type]

    def _announce(self, kind: str, message: str, **data: Any) -> None:
        self.events.append({"kind": kind, "message": message, "at": AT, "data": data})


def test_a_loss_is_a_trouble_with_its_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch)
    run.saved, newest = 10, {"step": 14}
    run.losses.look(newest)
    run.losses.go_on(CRASH, newest, allowed=True, told=False)
    run.losses.look(newest)
    run.now_s += 12.5
    run.losses.look({"step": 11})
    run.losses.look({"step": 12})
    (trouble,) = troubles_of(run.events)
    assert (trouble.remedy, trouble.step, trouble.steps_again, trouble.seconds) == ("lost_workers", 14, 4, 12.5)
    assert "rank 1 on node h1 was killed" in trouble.cause and len(run.events) == 2


def test_a_loss_that_another_remedy_has_told_is_only_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, monkeypatch)
    run.losses.go_on(CRASH, {"step": 3}, allowed=True, told=True)
    run.losses.look({"step": 1})
    assert run.events == [] and capsys.readouterr().out == f"{CRASH}: starting the workers again\n"


@pytest.mark.parametrize(("places", "error"), [(None, RunFailed), (("n1",), MachinesFailed)])
def test_too_many_losses_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, places: tuple[str, ...] | None, error: type[Exception]
) -> None:
    """Too many without a newer checkpoint: each restores the budget."""
    run = Run(tmp_path, monkeypatch, places)
    for _ in range(2):
        run.saved += 1
        for _ in range(3):
            run.losses.go_on(CRASH, None, allowed=True, told=False)
    with pytest.raises(error, match="4 times without a newer checkpoint"):
        run.losses.go_on(CRASH, None, allowed=True, told=False)


def test_newer_checkpoints_count_from_where_the_run_has_gone_back_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollback removes later checkpoints."""
    run = Run(tmp_path, monkeypatch)
    for run.saved in (100, 0, 10, 20, 30, 40):
        run.losses.go_on(CRASH, None, allowed=True, told=False)


def test_without_the_remedy_the_first_loss_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path, monkeypatch, ("n1",))
    with pytest.raises(RunFailed, match="lost_workers is false"):
        run.losses.go_on(CRASH, None, allowed=False, told=False)
    assert run.events == []
    run.losses.go_on(CRASH, None, allowed=False, told=True)  # another remedy has ended the workers
    run.losses.go_on(Crash(How.NO_ROOM, "found no room"), None, allowed=False, told=False)


def test_a_group_that_is_lost_before_its_first_step_computes_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path, monkeypatch)
    run.saved, newest = 10, {"step": 14}
    run.losses.go_on(CRASH, newest, allowed=True, told=False)
    run.losses.begin(newest)
    run.losses.go_on(CRASH, newest, allowed=True, told=False)
    assert [(one.step, one.steps_again) for one in troubles_of(run.events)] == [(14, 4), (10, 0)]
