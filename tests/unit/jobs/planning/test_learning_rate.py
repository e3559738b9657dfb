"""The learning rate as a function of the step. Equality with transformers is shown in the integration tier."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.planning import learning_rate_at
from jobs.planning.learning_rate import decay_steps
from jobs.spec.finetune import SchedulerType, Train

KINDS = get_args(SchedulerType)


@pytest.mark.parametrize("kind", KINDS)
def test_warmup_starts_at_zero_and_ends_at_the_peak(kind: SchedulerType) -> None:
    train = Train(learning_rate=1e-3, lr_scheduler_type=kind, warmup_steps=10)
    assert [learning_rate_at(step, train, 100) for step in (0, 5, 10)] == pytest.approx([0.0, 5e-4, 1e-3])


@pytest.mark.parametrize("kind", KINDS)
def test_without_warmup_the_first_step_has_the_peak(kind: SchedulerType) -> None:
    assert learning_rate_at(0, Train(learning_rate=1e-3, lr_scheduler_type=kind), 100) == 1e-3


def test_halfway_down_linear_and_cosine_are_at_half() -> None:
    for kind in ("linear", "cosine"):
        assert learning_rate_at(50, Train(learning_rate=1.0, lr_scheduler_type=kind), 100) == pytest.approx(0.5)


def test_stable_phase_lasts_until_the_decay() -> None:
    train = Train(learning_rate=1.0, lr_scheduler_type="warmup_stable_decay", warmup_steps=10, decay_ratio=0.2)
    assert {learning_rate_at(step, train, 100) for step in range(10, 81)} == {1.0}
    assert learning_rate_at(90, train, 100) == pytest.approx(0.5)


def test_decay_gives_way_to_the_warmup() -> None:
    train = Train(lr_scheduler_type="warmup_stable_decay", warmup_ratio=0.6, decay_ratio=0.6)
    assert decay_steps(train, 100) == 40


@settings(deadline=None)
@given(st.sampled_from(KINDS), st.floats(0, 1), st.floats(0, 1), st.integers(1, 500))
def test_rate_is_always_between_zero_and_the_peak(kind: SchedulerType, warmup: float, decay: float, total: int) -> None:
    train = Train(learning_rate=1e-3, lr_scheduler_type=kind, warmup_ratio=warmup, decay_ratio=decay)
    rates = [learning_rate_at(step, train, total) for step in range(total)]
    assert all(0.0 <= rate <= 1e-3 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
