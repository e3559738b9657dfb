"""A mixture whose weights change at a position: rows before it stay, and each section continues where it is."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.data.order.mixture import MixedSection, Mixture, Weights
from jobs.data.order.permutation import key
from jobs.data.order.row_order import ShuffledRows, StepPlan
from tests.support.roworders import counts_of, rows_at
from tests.unit.jobs.data.order.test_mixture import LIMITED, SEEDS, WEIGHTS, end_of, mixture_of


def test_other_weights_from_a_position_on_leave_the_rows_before_it_and_the_epochs_of_each_section() -> None:
    plain = mixture_of((6000, 19), (900, 1))
    changed = replace(plain, changes=(Weights(1000, (19.0, 3.0)), Weights(1009, (19.0, 9.0))))
    stop = 1009 + 64 * 40
    before, after = plain.rows_between(0, stop), changed.rows_between(0, stop)
    assert np.array_equal(before[:1000], after[:1000]) and not np.array_equal(before, after)
    counts = counts_of(changed, after[1009:])
    assert counts[1] == pytest.approx(64 * 40 * 9 / 28, abs=2)
    assert len(np.unique(after)) == stop, "no row comes twice in its first epoch"
    assert after.min() >= 0 and counts_of(changed, after)[0] <= 6000
    drawn = rows_at(ShuffledRows(900, 64, key(1, 6, 1)), range(counts_of(changed, after)[1]))
    gaps = sorted(set(drawn) - {*(after - 6000)})
    assert 0 < len(gaps) <= 2 * (1 + round(64 * 3 / 22)), "of cycles that were cut short"


@settings(max_examples=60, deadline=None)
@given(
    sections=LIMITED,
    seed=SEEDS,
    positions=st.lists(st.integers(0, 2500), max_size=3, unique=True).map(sorted),
    data=st.data(),
)
def test_with_other_weights_any_piece_is_that_of_a_long_stretch_and_limits_hold(
    sections: list[MixedSection], seed: int, positions: list[int], data: st.DataObject
) -> None:
    weights = [tuple(data.draw(WEIGHTS) for _ in sections) for _ in positions]
    plain = Mixture(tuple(sections), 64, seed)
    changed = replace(plain, changes=tuple(map(Weights, positions, map(tuple, weights))))
    stop = end_of(changed, 3000)
    whole = changed.rows_between(0, stop)
    first = min([*positions, stop, end_of(plain, 3000)])
    assert np.array_equal(whole[:first], plain.rows_between(0, first))
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, stop), max_size=5))), stop]
    pieces = [changed.rows_between(low, high) for low, high in pairwise(cuts)]
    assert np.array_equal(np.concatenate(pieces), whole)
    for section, uses in zip(sections, counts_of(changed, whole), strict=True):
        assert section.max_uses is None or uses <= section.max_uses


def test_the_steps_are_known_at_which_a_section_drops_out_or_weights_change() -> None:
    mixture = mixture_of((300, 1, 1.0), (900, 1), (100, 2, 1.0))
    plan = StepPlan(mixture, 50, 40, 2000)
    kinds = [set(np.searchsorted([300, 1200], plan.rows_of_step(step), "right").tolist()) for step in range(40)]
    changes = sorted(plan.steps_of_changes)
    assert changes == [at // 50 for at in mixture.changes_at] and len(changes) == 2
    assert 2 in kinds[0] and 2 not in kinds[changes[0] + 1] and 0 in kinds[changes[1] - 1] and kinds[-1] == {1}
    assert 5 in StepPlan(replace(mixture, changes=(Weights(250, (1, 9, 2)),)), 50, 40, 2000).steps_of_changes
    assert not StepPlan(ShuffledRows(300, 64, 1), 50, 20, 1000).steps_of_changes
