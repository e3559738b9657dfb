"""The weights of sources for replay, which a run raises when its model forgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydantic import Field

from jobs.frozen import Frozen
from jobs.spec.finetune import Spec

FACTOR: Final = 3


class ReplayRaise(Frozen):
    """A step from which on sources for replay have more weight than in the spec."""

    step: int = Field(description="The first step with the raised weights, from 0.")
    times: int = Field(description=f"How often the weights have been raised, each time by a factor of {FACTOR}.")


def times_raised(raises: Sequence[ReplayRaise]) -> int:
    """Return how often the weights were raised; 0 for no raise."""
    return raises[-1].times if raises else 0


def raised_again(raises: Sequence[ReplayRaise], step: int) -> tuple[ReplayRaise, ...]:
    """Return the raises of a run that has gone back to `step`, and raises the weights once more from there on."""
    return (*(one for one in raises if one.step < step), ReplayRaise(step=step, times=times_raised(raises) + 1))


def raised_weights(spec: Spec, times: int) -> tuple[float, ...]:
    """Return the weights of all training sources after those for replay were raised this number of times."""
    return tuple((source.weight or 1.0) * (FACTOR**times if source.replay else 1) for source in spec.data.train)


def replay_share(spec: Spec, times: int) -> float:
    """Return the share of the training rows that sources for replay give, from 0 to 1."""
    weights = raised_weights(spec, times)
    replayed = (weight for weight, source in zip(weights, spec.data.train, strict=True) if source.replay)
    return sum(replayed) / sum(weights)
