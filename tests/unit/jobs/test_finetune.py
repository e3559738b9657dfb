"""The end of a run on Ray, as its driver reports it. Nothing is trained."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.errors import StorageError
from jobs import finetune
from jobs.run.outcome import Event, Outcome, Status
from jobs.run.paths import JobPaths
from jobs.run.progress import NoProgress


class _Seen(NoProgress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def event(self, event: Event) -> None:
        self.said.append(event.message)


@pytest.mark.parametrize("has_ended", [True, False])
def test_a_log_that_cannot_be_written_at_the_end_changes_no_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_ended: bool
) -> None:
    paths, seen = JobPaths(str(tmp_path)), _Seen()
    outcome = Outcome(status=Status.SUCCEEDED, model_path="m", ended_at=datetime.datetime.now(datetime.UTC))

    def concluded(*given: Any, **named: Any) -> Outcome:
        if has_ended:
            return outcome
        raise StorageError("the outcome cannot be written")

    @contextlib.contextmanager
    def redirected(log: str) -> Iterator[None]:
        yield
        raise StorageError("cannot write the log: No space left on device")

    spec = SimpleNamespace(remedies=SimpleNamespace(machine=True))
    begun = SimpleNamespace(spec=spec, paths=paths, tell=lambda announce: None)
    monkeypatch.setattr(finetune, "begin_run", lambda *given, **named: begun)
    monkeypatch.setattr(finetune, "concluded", concluded)
    monkeypatch.setattr(finetune, "redirected_output", redirected)
    nothing: Any = None
    if has_ended:
        assert finetune.run_on_ray(nothing, address="a", progress=seen) is outcome
        assert seen.said[-1].endswith("the last events are not: cannot write the log: No space left on device")
    else:
        with pytest.raises(StorageError, match="the outcome cannot be written"):
            finetune.run_on_ray(nothing, address="a", progress=seen)
