"""What a soak does when there is nothing to do it to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from orchestrator.queue.states import Reason, State
from tests.soak.acts import Doing
from tests.soak.checks import Fate, Seen
from tests.soak.plan import Act, Kind


def test_a_kill_waits_for_somebody_to_kill_until_all_jobs_have_ended() -> None:
    world: Any = SimpleNamespace(drivers=dict, nodes=[])
    doing, act = Doing(world, 0.0), Act(0.0, Kind.DRIVER_KILL)
    doing.fates["a"] = Fate("a", None)
    doing.act(act)
    assert not doing.missed and not doing.nothing_to_undo()
    doing.seen["a"] = Seen("a", State.SUCCEEDED, Reason.FINISHED, 1)
    assert doing._happens(act) and doing.missed == {Kind.DRIVER_KILL: 1}


def test_other_acts_are_missed_at_once() -> None:
    world: Any = SimpleNamespace(nodes=[])
    doing = Doing(world, 0.0)
    doing.fates["a"] = Fate("a", None)
    doing.act(Act(0.0, Kind.NODE_KILL))
    assert doing.missed == {Kind.NODE_KILL: 1} and doing.nothing_to_undo()
