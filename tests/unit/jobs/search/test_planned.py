"""A budget in runs or tokens pays for the probe of the learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from jobs.search.ledger import Ledger
from jobs.search.rules.budget import checked_plan
from jobs.search.rules.prior import with_prior
from tests.unit.jobs.search.rules.test_auto import RATE, sweep_with


def compared_of(folder: Path, steps: int, probe_tokens: int | None, **fields: Any) -> float:
    """Compared trials that the budget pays for, before the probe (None) or after it."""
    sweep, _ = with_prior(sweep_with(folder, prior={RATE: 1e-4}, **fields))
    ledger = Ledger(sweep, str(folder / "found"), lambda spec: steps, 1000.0)
    if probe_tokens is not None:
        ledger.set_bound(None, probe_tokens)
    return checked_plan(ledger.sweep, steps, 1000.0, ledger.probe_steps).compared


@pytest.mark.parametrize("budget", [{"runs": 3.2}, {"tokens": 3200}])
@pytest.mark.parametrize(
    ("steps", "probe_tokens", "trials"),
    [
        (24, None, 5),  # six trials, a whole run and the probe take 78.3 steps, and the budget has 76.8
        (24, 800, 5),
        (24, 0, 6),  # there was nothing to probe
        (100, None, 6),
    ],
)
def test_the_probe_takes_the_room_of_a_trial_in_short_runs(
    tmp_path: Path, steps: int, probe_tokens: int | None, trials: int, budget: dict[str, Any]
) -> None:
    assert compared_of(tmp_path, steps, probe_tokens, budget=budget) == trials


def test_the_probe_leaves_at_least_one_trial(tmp_path: Path) -> None:
    assert compared_of(tmp_path, 8, None, budget={"runs": 1.5}) == 1
