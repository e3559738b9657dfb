"""A sweep heeds `fleetune stop` as a run does."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobs.load import load_sweep
from jobs.outcome import Status
from jobs.paths import JobPaths
from jobs.search import drive
from jobs.search.ledger import Ledger
from orchestrator.orders import ask_to_stop


def test_what_fleetune_stop_leaves_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {
        "model": {"path": "model", "task": "sequence-classification", "num_labels": 2},
        "data": {"train": "rows.jsonl", "format": "classification", "eval_fraction": 0.1},
    }
    (tmp_path / "spec.json").write_text(json.dumps({"kind": "sweep", "base": base}))
    sweep, paths = load_sweep(str(tmp_path / "spec.json")), JobPaths(str(tmp_path))
    assert sweep is not None
    monkeypatch.setattr(drive, "_LOOK_EVERY_S", 0.0)
    parts: list[Any] = [Ledger(sweep, paths.root, 10), paths, str(tmp_path / "own"), [], print]
    search = drive.Search(*parts, SimpleNamespace(asked=False), 1.0)  # type: ignore[arg-type]
    assert not search.asked_to_stop() and not search.spent()
    ask_to_stop(paths.root)
    assert search.asked_to_stop() and search.spent()
    outcome = drive.concluded_sweep(search)
    assert outcome.status is Status.INTERRUPTED and str(outcome.reason).startswith("stopped on request")
