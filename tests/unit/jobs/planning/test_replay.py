"""The weights of replay: how often they were raised, from which step on, and what share of the rows that gives."""

from __future__ import annotations

import pytest

from jobs.planning.replay import ReplayRaise, raised_again, raised_weights, replay_share, times_raised
from jobs.spec.finetune import Spec

SPEC = Spec.model_validate(
    {
        "model": {"path": "/m", "task": "causal-lm"},
        "data": {
            "format": "text",
            "train": [
                {"path": "/task", "weight": 0.8},
                {"path": "/books", "weight": 0.04, "replay": True},
                {"path": "/other", "weight": 0.15},
                {"path": "/news", "weight": 0.01, "replay": True},
            ],
        },
    }
)


def test_a_raise_replaces_those_from_its_step_on_and_counts_them() -> None:
    assert times_raised(()) == 0
    raises = raised_again((), 20)
    assert raises == (ReplayRaise(step=20, times=1),)
    later = raised_again(raises, 30)
    assert later == (*raises, ReplayRaise(step=30, times=2)) and times_raised(later) == 2
    assert raised_again(later, 20) == (ReplayRaise(step=20, times=3),)
    assert raised_again(later, 25) == (*raises, ReplayRaise(step=25, times=3))


def test_rows_are_not_grouped_by_length_where_weights_may_rise() -> None:
    """A raise inside a group would change the rows of steps that are done, or would have to wait for the next group."""
    apart = SPEC.data.model_copy(update={"packing": False})
    unmarked = tuple(one.model_copy(update={"replay": False}) for one in apart.train)
    marked, plain = (
        SPEC.model_copy(update={"data": data}) for data in (apart, apart.model_copy(update={"train": unmarked}))
    )
    assert plain.grouped_by_length and not marked.grouped_by_length and not SPEC.grouped_by_length


def test_the_weights_of_replay_are_three_times_as_large_with_each_raise() -> None:
    assert raised_weights(SPEC, 0) == (0.8, 0.04, 0.15, 0.01)
    assert raised_weights(SPEC, 2) == pytest.approx((0.8, 0.36, 0.15, 0.09))
    assert [replay_share(SPEC, times) for times in range(4)] == pytest.approx([0.05, 3 / 22, 9 / 28, 27 / 46])
