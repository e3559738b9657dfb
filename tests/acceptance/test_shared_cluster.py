"""Three tenants on one real Ray cluster of four slots, through a real server: small trainings and programs.

A slot is a logical CPU, so that all of this runs without GPUs.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from pprint import pformat
from typing import Any

import pytest

from cluster.capacity.inventory import Inventory
from jobs.run.checkpoints import committed_steps
from jobs.run.paths import JobPaths
from jobs.storage.journal import read_journal
from orchestrator.queue.records import Job
from orchestrator.store import open_store
from tests.support import tiny
from tests.support.hold import Hold
from tests.support.memorylimit import kill_for_memory
from tests.support.processes import command_of, originals, processes_with, wait_for
from tests.support.queuereplay import starts_and_plans
from tests.support.raycluster import ray_head
from tests.support.sharedcluster import SLOTS, Shared, files_of, rest, workers_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TENANTS = ("vision", "speech", "search")
LONG_S, SHORT_S = "600", "5"  # for how long no attempt is interrupted
STEPS, FURTHER, SAVED_EVERY = 30_000, 3, 2  # of more steps, Ray Data would read most rows
SWEEP_STEPS = 40
HOLDS = """
import sys, time, ray
ray.init()
@ray.remote(num_cpus=3)
def hold():
    print("holds", flush=True)
    time.sleep(1000)
ray.get(hold.remote())
"""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("shared")
    tiny.save_model(folder / "llama", "llama")
    tiny.save_model(folder / "bert", "bert")
    tiny.write_text(folder / "text.jsonl", 300)
    tiny.write_labelled(folder / "labelled.jsonl", 100, 3)
    calls, hold = str(folder / "calls"), Hold(folder)
    with ray_head(num_cpus=SLOTS, **hold.environment, BROKEN_METRIC_CALLS=calls) as head:
        found = Shared(head, folder, hold)
        found.serve(LONG_S)
        try:
            with found.queue.client() as client:
                for tenant in TENANTS:
                    client.put(f"/v1/tenants/{tenant}", json={"weight": 1.0}).raise_for_status()
            yield found
        finally:
            found.queue.kill()


def command(name: str, workers: int, words: list[str], queue: dict[str, Any]) -> dict[str, Any]:
    resources = {"num_workers": workers, "gpus_per_worker": 0, "cpus_per_worker": 1}
    return {"kind": "command", "name": name, "command": words, "resources": resources, "queue": queue}


def twelve() -> list[dict[str, Any]]:
    """Programs; gangs of one and of two; of three tenants in two classes. Other tests train on this cluster."""
    made = []
    for number in range(12):
        queue = {"tenant": TENANTS[number % 3], "priority": 5 if number in (4, 9, 11) else 0}
        workers = 2 if number in (1, 3, 6, 8, 9) else 1
        made.append(command(f"program-{number}", workers, ["sleep", str(1 + number % 4)], queue))
    return made


def test_twelve_jobs_of_three_tenants_all_finish_in_the_order_that_the_rules_give(shared: Shared) -> None:
    """All wait at first, since the only node is cordoned. Each start is then compared with a plan of its moment.

    How long the jobs run is no matter of rules, so it is taken from what happened. Ray says some seconds late that a
    slot is free again: a moment may have had fewer free slots than its leases say, so it is planned with each number
    of slots that Ray may still have held: where they leave too few for a gang of two, nothing is reserved for it, since
    they might be held for good, and a job of one slot passes it. No attempt is interrupted within ten minutes.
    """
    shared.serve(LONG_S)
    with shared.queue.client() as client:
        (node,) = client.get("/v1/nodes").json()["nodes"]
        path = f"/v1/nodes/{node['node_id']}"
        client.put(path, json={"order": "cordon", "reason": "a test"}).raise_for_status()
        ids = shared.submit(*twelve())
        client.put(path, json={"order": "use", "reason": ""}).raise_for_status()
    shared.ended(*ids, within_s=800.0)
    for job_id in ids:
        job = shared.job(job_id)
        assert (job["state"], job["attempt"]) == ("succeeded", 1), (job, shared.story(job_id))
    store = open_store(shared.queue.store)
    try:
        jobs: list[Job] = [store.job(job_id) for job_id in ids]
        leases = [lease for lease in store.leases() if lease.job_id in ids]
        (node,) = shared.backend().inventory().nodes  # of which the last jobs may still seem to hold something
        held = [Inventory((replace(node, foreign_cpus=count),)) for count in range(SLOTS)]
        plans = [starts_and_plans(jobs, leases, inventory, store.tenants()) for inventory in held]
    finally:
        store.close()
    moments = [(at[0][0], [planned for _, planned in at]) for at in zip(*plans, strict=True)]
    for started, planned in moments:
        assert any(started == some[: len(started)] for some in planned), pformat(moments, width=200)
    order = [job_id for started, _ in moments for job_id in started]
    assert sorted(order) == sorted(ids) and order != ids
    urgent = {ids[number] for number in (4, 9, 11)}
    assert set(order[:3]) == urgent
    shared.nothing_is_left()


def test_a_job_of_ray_that_the_queue_knows_nothing_of_is_planned_around_and_named(shared: Shared) -> None:
    """The job of two slots runs once the stranger is gone, and what both of its processes write is its log."""
    shared.serve(SHORT_S)
    assert f"Ray at {shared.head.dashboard}: 1 node, {SLOTS} CPUs, 0 GPUs" in shared.queue.log
    client = shared.rays_own_client()
    client.submit_job(entrypoint=shlex.join([sys.executable, "-c", HOLDS]), submission_id="somebody-elses")
    try:
        wait_for(lambda: shared.backend().inventory().nodes[0].foreign_cpus == 3, "it holds three slots", 120.0, rest)
        shared.queue.looks_anew()
        pair, single = shared.submit(
            command("pair", 2, ["sh", "-c", "echo hello from $RANK"], {"tenant": "vision"}),
            command("single", 1, ["true"], {"tenant": "speech"}),
        )
        shared.ended(single)
        assert shared.job(single)["state"] == "succeeded"
        assert (shared.job(pair)["state"], shared.job(pair)["attempt"]) == ("queued", 0)
        told = shared.queue.run("why", pair)
        assert told.returncode == 0, told.stderr
        assert "programs outside Fleetune: somebody-elses" in told.stdout, told.stdout
    finally:
        client.stop_job("somebody-elses")
    shared.ended(pair)
    assert shared.job(pair)["state"] == "succeeded"
    logs = shared.logs(pair)
    assert all(f"hello from {rank}" in str(logs) for rank in range(2)), logs
    shared.nothing_is_left()
    assert "Traceback" not in shared.queue.log


def test_a_mistake_in_a_function_of_the_user_costs_one_attempt_and_a_driver_without_memory_is_started_again(
    shared: Shared,
) -> None:
    shared.serve(SHORT_S)
    mistaken = tiny.spec_of(
        shared.folder / "runs", shared.folder / "bert", shared.folder / "labelled.jsonl", classify=True,
        name="mistaken", train__max_steps=2, resources__num_workers=1, data__eval_fraction=0.3,
        eval__metrics=["tests.support.own_metrics:broken"],
    )  # fmt: skip
    killed = shared.training("killed", 2, STEPS, {"tenant": "vision"}, checkpoint__save_steps=SAVED_EVERY)
    shared.hold.at(SAVED_EVERY + 1, "/killed-")
    wrong, starved = shared.submit(mistaken.model_dump(mode="json"), killed)
    shared.reaches(starved, SAVED_EVERY)
    run = JobPaths(shared.job(starved)["run"])
    wait_for(lambda: committed_steps(run), "it has a checkpoint", 120.0, rest)
    (driver,) = originals(
        pid for pid in processes_with(f"FLEETUNE_JOB={starved}") if b"jobs.drivers.attempt" in command_of(pid)
    )
    by_the_kernel = kill_for_memory(driver)
    wait_for(lambda: shared.job(starved)["attempt"] == 2, "it is started again", 240.0, rest)
    assert "driver-killed" in [one["data"].get("reason") for one in shared.events(starved)]
    reached = shared.steps(starved)
    shared.hold.at(reached + FURTHER + 1, "/killed-")
    shared.reaches(starved, reached + FURTHER)
    shared.ended(wrong)
    shared.cancelled(starved)

    job = shared.job(wrong)
    assert (job["state"], job["reason"], job["attempt"]) == ("failed", "bad-input", 1), (job, shared.story(wrong))
    assert "no such column in my table" in job["message"]
    assert (shared.folder / "calls").read_text().count("called") == 1
    job = shared.job(starved)
    assert job["attempt"] == 2
    assert any("out of memory" in message for message in shared.story(starved)), (by_the_kernel, shared.story(starved))
    starts = [json.loads(path.read_bytes())["start"] for path in sorted((Path(job["run"]) / "attempts").iterdir())]
    assert starts[0] == 0 and starts[-1] >= SAVED_EVERY
    shared.nothing_is_left()


def sweep_of(shared: Shared, name: str, tenant: str, **rules: Any) -> dict[str, Any]:
    base = tiny.spec_of(
        shared.folder / "runs", shared.folder / "bert", shared.folder / "labelled.jsonl", classify=True, name=name,
        train__max_steps=SWEEP_STEPS, resources__num_workers=1, data__eval_fraction=0.3,
    )  # fmt: skip
    rate = {"min": 1e-4, "max": 1e-2, "log": True}
    return {
        "kind": "sweep",
        "name": name,
        "base": base.model_dump(mode="json"),
        "space": {"learning_rate": rate, "warmup_ratio": {"min": 0.0, "max": 0.2}},
        "queue": {"tenant": tenant},
        "num_gangs": 2,
        **rules,
    }


def test_two_sweeps_and_a_single_job_share_the_slots(shared: Shared) -> None:
    """Both sweeps have two gangs at first. The job of two slots waits for neither's end: each gives one gang back."""
    shared.serve(SHORT_S)
    trials = [f"/{number:04d}" for number in range(1, 10)]
    shared.hold.at(1, "/single-", *trials)  # so that nothing is over before all have their slots
    sweeps = shared.submit(
        sweep_of(shared, "by-auto", "vision"),
        sweep_of(shared, "by-chance", "speech", algorithm="random", scheduler="asha", budget={"trials": 6}),
    )
    wait_for(lambda: [workers_of(shared, one) for one in sweeps] == [2, 2], "both have two gangs", 240.0, rest)
    (single,) = shared.submit(shared.training("single", 2, 4, {"tenant": "search"}))

    def no_slot_is_idle() -> bool:
        leased = {job_id: workers_of(shared, job_id) for job_id in (single, *sweeps)}
        return leased[single] == 2 and sum(leased.values()) == SLOTS

    wait_for(no_slot_is_idle, "the job runs and no slot is idle", 300.0, rest)
    shared.hold.at(1, *trials)
    shared.ended(single)
    shared.hold.release()
    shared.ended(*sweeps, within_s=900.0)
    for job_id in (single, *sweeps):
        assert shared.job(job_id)["state"] == "succeeded", (shared.job(job_id), shared.story(job_id))
    ends = [shared.job(job_id)["ended_s"] for job_id in (single, *sweeps)]
    assert ends[0] < min(ends[1:])
    boards = [json.loads(shared.queue.run("sweep", "leaderboard", one, "--json").stdout) for one in sweeps]
    for found in boards:
        assert {one["state"] for one in found} <= {"finished", "stopped", "paused"}, found
        assert (Path(found[0]["run"]) / "model/config.json").exists() and found[0]["step"] == SWEEP_STEPS
    # Six rates after a quarter of a run, or three after half of it if nothing is learned before; and a whole run, if
    # none of these has about its rate.
    (rung,) = {one["step"] for one in boards[0] if one["state"] == "paused"}
    compared = {SWEEP_STEPS // 4: 6, SWEEP_STEPS // 2: 3}[rung]
    assert len(boards[0]) - compared in (0, 1) and len(boards[1]) == 6, boards
    shared.nothing_is_left()


def test_a_sweep_outlives_its_server_and_a_pause_and_gives_back_what_its_final_run_does_not_need(
    shared: Shared,
) -> None:
    """It may not be interrupted, so that the job of three slots starts with what is given back, or after its end."""
    shared.serve(SHORT_S)
    rules = {"algorithm": "random", "scheduler": "none", "budget": {"trials": 3}, "then": "final"}
    queue = {"tenant": "vision", "preemptible": False}
    shared.hold.at(1, "/0002", "/0003")  # so that it is not over before it is paused, nor needs less than two gangs
    (sweep,) = shared.submit(sweep_of(shared, "steady", "vision", **rules, queue=queue))
    wait_for(lambda: workers_of(shared, sweep) == 2, "it has two gangs", 240.0, rest)

    def ended_trials() -> set[int]:
        run = shared.job(sweep)["run"]
        records = read_journal(f"{run}/ledger") if run else ()
        return {one["trial"] for one in records if one.get("answer", {}).get("status") == "finished"}

    wait_for(lambda: len(ended_trials()) >= 1, "one trial has ended", 300.0, rest)
    shared.queue.kill()
    shared.queue.start()
    assert shared.queue.run("pause", sweep).returncode == 0
    wait_for(lambda: shared.job(sweep)["state"] == "queued", "it is paused", 240.0, rest)
    before = ended_trials()
    assert shared.job(sweep)["attempt"] == 1 and 1 <= len(before) <= 3
    assert shared.queue.run("resume", sweep).returncode == 0
    wait_for(lambda: workers_of(shared, sweep) == 2, "it goes on with two gangs", 240.0, rest)
    shared.hold.at(1, "/final")
    (single,) = shared.submit(shared.training("single", 3, 4, {"tenant": "search"}))
    wait_for(lambda: shared.job(single)["attempt"] >= 1, "the job of three slots has started", 300.0, rest)
    shared.hold.release()
    shared.ended(sweep, single)
    jobs = [shared.job(job_id) for job_id in (sweep, single)]
    assert [job["state"] for job in jobs] == ["succeeded"] * 2, (jobs, shared.story(sweep))
    root = Path(jobs[0]["run"])
    answers = [one["trial"] for one in read_journal(f"{root}/ledger") if "answer" in one]
    assert all(answers.count(trial) == 1 for trial in before) and len(ended_trials()) == 3, "none was trained twice"
    assert jobs[0]["attempt"] == 2 and (root / "final/model/config.json").exists()
    assert "goes on with 1 worker of 2, and gives the others back" in shared.story(sweep)
    began, ended = shared.numbers(single)["starting"], shared.numbers(sweep)["succeeded"]
    assert began < ended, "the job of three slots starts beside the final run"
    shared.nothing_is_left()


def test_a_comparison_whose_driver_is_killed_goes_on_with_the_method_that_has_not_ended(shared: Shared) -> None:
    """Its methods are searched one after another on the same two slots."""
    shared.serve(SHORT_S)
    rules = {"algorithm": "grid", "scheduler": "none", "space": {"learning_rate": [1e-3, 3e-3]}, "then": "nothing"}
    methods = ["full", {"name": "lora-r2", "method": "lora", "lora": {"rank": 2}}]
    shared.hold.at(1, "/methods/lora-r2/")
    (compared,) = shared.submit(
        {**sweep_of(shared, "compared", "vision", **rules), "kind": "compare", "methods": methods, "seeds": 1}
    )
    shared.hold.wait(300.0)
    assert workers_of(shared, compared) == 2, "nothing is given back before the last method"
    root = Path(shared.job(compared)["run"])
    before = files_of(root / "methods/full")
    (driver,) = originals(
        pid for pid in processes_with(f"FLEETUNE_JOB={compared}") if b"jobs.drivers.attempt" in command_of(pid)
    )
    os.kill(driver, signal.SIGKILL)
    wait_for(lambda: shared.job(compared)["attempt"] == 2, "it is started again", 240.0, rest)
    shared.hold.release()
    shared.ended(compared)

    job = shared.job(compared)
    assert (job["state"], job["attempt"]) == ("succeeded", 2), (job, shared.story(compared))
    assert (job["step"], job["total_steps"]) == (4 * SWEEP_STEPS, 4 * SWEEP_STEPS)
    assert files_of(root / "methods/full") == before
    full, lora = json.loads((root / "comparison.json").read_text())["methods"]
    for one in (full, lora):
        assert (one["status"], one["trials"]) == ("succeeded", 2)
    assert job["metrics"]["eval_loss"] == min(one["metrics"]["eval_loss"]["mean"] for one in (full, lora))
    shown = shared.queue.run("show", compared).stdout
    assert "lora-r2 (rank 2)" in shown and "loss is best with" in shown, shown
    refused = shared.queue.run("sweep", "leaderboard", compared)
    assert refused.returncode == 2 and f"{root}/methods/lora-r2" in refused.stderr
    shared.nothing_is_left()
