"""A part of a lease that a driver gives back is free for others, on a made-up cluster."""

from __future__ import annotations

from orchestrator.queue.states import ENDED, DesiredState, State
from orchestrator.queue.store import Change
from orchestrator.service import drivers as driving
from tests.support.service import ServiceWorld, beat_of, command, finetune, queue


def test_what_a_sweep_gives_back_is_free_for_others(world: ServiceWorld) -> None:
    space = {"learning_rate": {"min": 1e-5, "max": 1e-3, "log": True}}
    base = finetune(resources={"num_workers": 2, "gpus_per_worker": 1, "cpus_per_worker": 1})
    base["data"] = {**base["data"], "eval_fraction": 0.1}
    sweep = {"kind": "sweep", "name": "search", "base": base, "space": space, "budget": {"trials": 8}, "num_gangs": 8}
    (job,) = world.admit({**sweep, "scheduler": "none", "algorithm": "random"})
    world.passes(2)
    job = world.job(job.job_id)
    nodes = [node for node, workers in job.placement for _ in range(workers)]
    assert len(nodes) == 8
    (waiting,) = world.admit(command(resources={"num_workers": 6, "gpus_per_worker": 1}, **queue(preemptible=False)))
    driving.heartbeat(world.context, beat_of(job, keeps=(*nodes[:2], "elsewhere")))
    assert world.job(job.job_id) == job, "no part of its lease"
    driving.heartbeat(world.context, beat_of(job, keeps=nodes[:2]))
    driving.heartbeat(world.context, beat_of(job, keeps=nodes[:2]))  # it is said again with each beat
    assert [event.kind for event in world.store.events(job.job_id)].count("given-back") == 1

    def passes(number: int) -> None:  # not those of the world, which counts what jobs held when they were started
        for _ in range(number):
            world.clock.advance(1.0)
            world.server.step()

    passes(3)
    assert world.job(waiting.job_id).state is State.RUNNING
    kept = world.job(job.job_id)
    assert (kept.state, kept.attempt, kept.gang.num_workers) == (State.RUNNING, 1, 2)
    assert kept.placement == ((nodes[0], 2),)
    world.store.ask(waiting.job_id, Change(wanted=DesiredState.CANCEL), world.clock(), "anna")
    passes(5)
    assert world.job(waiting.job_id).state in ENDED
    assert world.job(job.job_id).gang.num_workers == 2, "it needs no more"
