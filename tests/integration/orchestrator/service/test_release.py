"""A job whose driver nobody can see end: who may give its nodes free, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.errors import BackendUnreachable
from cluster.testing import FakeBackend
from orchestrator.queue.errors import Forbidden, NotReleasable
from orchestrator.queue.records import Role
from orchestrator.queue.states import DesiredState, State
from orchestrator.queue.store import Change
from orchestrator.service.context.caller import Caller
from orchestrator.service.drivers import launch_of
from orchestrator.service.nodes import release
from tests.support.service import ANNA, ServiceWorld, command


class Undead(FakeBackend):
    """A driver that no stop ends, and which is listed as running also when its node is gone."""

    def stop(self, submission: str, *, hard: bool = False) -> None: ...


def test_only_an_admin_releases_a_job_and_only_while_no_node_of_its_driver_answers() -> None:
    world, root = ServiceWorld(4), Caller("root", Role.ADMIN)
    world.backend.script("*", runs_s=1e9)
    (job,) = world.admit(command(resources={"gpus_per_worker": 4}))
    world.passes(2)
    job = world.job(job.job_id)
    undead = Undead(world.cluster)
    context = replace(world.context, backend=undead)
    world.server = world.another("other", backend=undead, launch=launch_of(context))
    with pytest.raises(NotReleasable, match="cancel it first"):
        release(context, job, root)
    world.store.ask(job.job_id, Change(wanted=DesiredState.CANCEL), world.clock(), "anna")
    world.passes(100)
    job = world.job(job.job_id)
    assert job.state is State.STOPPING
    with pytest.raises(Forbidden):
        release(context, job, ANNA)
    with pytest.raises(NotReleasable, match="n0 answers"):
        release(context, job, root)
    with undead.unreachable(), pytest.raises(BackendUnreachable):
        release(context, job, root)
    world.cluster.forget_node("n0")
    done = release(context, job, root)
    assert (done.state, world.store.leases(held=True)) == (State.CANCELLED, [])
    released = [event for event in world.store.events(job.job_id) if event.kind == "released"]
    assert [event.data["by"] for event in released] == ["root"]
    with pytest.raises(NotReleasable, match="it has ended and holds no nodes"):
        release(context, done, root)
    with pytest.raises(NotReleasable):
        world.store.release(job.job_id, job.attempt, world.clock(), "root")
    world.close()
