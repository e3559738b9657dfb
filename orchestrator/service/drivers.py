"""The server's side of drivers: start, work, and whether to go on. Messages are in `jobs.drivers.link.messages`."""

from __future__ import annotations

import datetime
import json
import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from cluster.backend import Launch
from cluster.capacity.occupancy import workers_in
from cluster.python_module import module_command
from cluster.settings import DriverPlace, ca_for_drivers, protocols_environment
from jobs.drivers.link.messages import MOST_STEPS, Answer, Beat, Instruction, Register, Registered
from jobs.run.paths import JobPaths, new_run_name
from jobs.spec.load import job_in
from jobs.spec.references import run_named
from orchestrator.controller.drivers import LaunchOf
from orchestrator.controller.node_health import FAULTY, REPORTED, Incident, added, dumped, loaded, unknown_part
from orchestrator.queue.errors import AttemptOver, NotYourAttempt, QueueError, StoreBroken, UnknownJob
from orchestrator.queue.node_rules import taken_by_ray
from orchestrator.queue.records import Job, Measured, QueueEvent, environment_digest_of, ray_submission_of
from orchestrator.queue.states import HOLDS_A_LEASE, DesiredState, State
from orchestrator.service.admission.limits import wrong_secrets
from orchestrator.service.context.context import ServiceContext
from orchestrator.service.context.identity import attempt_token

_ASKED = {DesiredState.CANCEL: "its owner has cancelled it", DesiredState.PAUSE: "its owner has paused it"}
LONGEST_S: Final = 10 * 365 * 86_400.0  # seconds; no run takes longer than ten years
LARGEST_METRIC: Final = 1e30
RESTART_S: Final = 3_600.0  # seconds; most that saving and starting again cost, beside the lost work
_REPORTING: Final = threading.Lock()  # reports of faulty nodes take turns: each rewrites the list of all of them


def launch_of(context: ServiceContext) -> LaunchOf:
    """Make the function that describes how to start a driver.

    Every driver is the module `jobs.drivers.attempt`, and asks the server for the rest.

    The function raises StoreBroken.
    """

    def launch(job: Job) -> Launch:
        token = attempt_token(context.driver_key.value(), job.job_id, job.attempt)
        place = DriverPlace(context.url, job.job_id, job.attempt, token, context.queue, context.other_urls)
        return Launch(
            job.submission,
            module_command("jobs.drivers.attempt", python=context.python),
            environment={**place.environment(), **protocols_environment(), **ca_for_drivers()},
            like=ray_submission_of(job),
            like_digest=environment_digest_of(job),
            metadata={"job": job.job_id, "tenant": job.tenant, "gpus": _gpus(job)},
        )

    return launch


def _gpus(job: Job) -> str:
    """Format the GPUs on each node, as in `n1=4 n2=4`."""
    return " ".join(f"{node}={workers * job.gang.gpus_per_worker}" for node, workers in job.placement)


def check_attempt(context: ServiceContext, token: str, message: Register | Beat) -> None:
    """Check that a message comes from the driver of its attempt, before anything else is done with it.

    Raises:
        OtherQueue: the driver belongs to another queue (409).
        NotYourAttempt: the token does not belong to the attempt that the message names (401).
    """
    context.check_queue(message.queue, f"the driver of {message.job_id}")
    if not context.driver_key.fits(token, message.job_id, message.attempt):
        raise NotYourAttempt(
            f"this token is not of attempt {message.attempt} of {message.job_id}: a driver shows the "
            "FLEETUNE_DRIVER_TOKEN that it was started with"
        )


def register(context: ServiceContext, message: Register) -> Registered:
    """Return what the attempt is to run.

    Raises:
        AttemptOver: the attempt is not the newest, or has ended (410).
        QueueError: a secret or a model that the spec names does not exist any more (400).
    """
    job = _current(context, message)
    if job is None:
        raise AttemptOver(f"attempt {message.attempt} of {message.job_id} is over: end this driver")
    spec = json.loads(context.store.spec(job.job_id))
    run = _run(context, job, spec)
    parents = _parents(context, job)
    context.heartbeats.note(Measured(job.job_id, job.attempt))
    context.heartbeats.flush()  # from now on the job counts as running
    order, _ = _order(job)
    return Registered(
        queue=context.queue,
        kind=job.kind,
        spec=_with_model(context, job, spec),
        run=run,
        placement=job.placement,
        engine="ray" if context.engine == "ray" else "local",
        parents={parent.job_id: parent.run for parent in parents if parent.run is not None},
        secrets=_secrets(context, job, spec),
        order=order,
    )


def heartbeat(context: ServiceContext, message: Beat) -> Answer:
    """Record a heartbeat, and answer what to do.

    If the attempt is over: Instruction.LEAVE. Raises QueueError, StoreBroken.
    """
    job = _current(context, message)
    if job is None:
        reason = "the attempt is over, and another one may run"
        return Answer(order=Instruction.LEAVE, reason=reason, queue=context.queue)
    if message.run is not None and message.run != job.run:
        raise QueueError(f"{message.run[:200]} is not the run of {job.job_id}: that is {job.run}")
    said = Measured(
        job.job_id,
        job.attempt,
        step=message.step,
        total_steps=message.total_steps,
        saved_step=message.saved_step,
        remaining_s=message.remaining_s,
        interruption_cost_s=message.interruption_cost_s,
        metrics=message.metrics or None,
    )
    context.heartbeats.note(plausible(said, job, context.clock.now_s()))
    if message.draining and context.engine != "local":  # on a local backend, nodes are not taken away
        _note_draining(context, job, message.draining)
    if message.faulty and context.engine != "local":
        _note_faulty(context, job, message.faulty)
    if 0 < len(message.keeps) < workers_in(job.placement):
        kept = tuple(Counter(message.keeps).items())
        context.store.give_back(job.job_id, job.attempt, kept, context.clock.now_s())
    if message.last:  # the driver's end would make the store ignore reports that are still pending
        context.heartbeats.flush()
    order, reason = _order(job)
    return Answer(order=order, reason=reason, queue=context.queue)


def _note_draining(context: ServiceContext, job: Job, draining: Sequence[str]) -> None:
    """Drain nodes that Ray is about to take away, which only drivers can see. Jobs there leave as in any drain."""
    store, now_s = context.store, context.clock.now_s()
    known = {rule.node_id for rule in store.node_rules()}
    for node in {node for node, _ in job.placement}.intersection(draining) - known:
        store.put_node_rule(taken_by_ray(node, now_s))
        said = f"Ray is about to take {context.machines.label(node)} away: what runs there goes elsewhere"
        store.add_events([QueueEvent(now_s, "drain", said, data={"node": node, "by": "ray"})])


def _note_faulty(context: ServiceContext, job: Job, faulty: Sequence[str]) -> None:
    """Record faulty nodes for the leader, which suspects a node after several jobs have reported it.

    A driver repeats its report in every heartbeat: it is recorded once a day, with one event. A report that another
    server overwrites at the same moment comes again.
    """
    store, now_s = context.store, context.clock.now_s()
    nodes = {node for node, _ in job.placement}.intersection(faulty)
    if not nodes:
        return
    one = Incident(now_s, tuple(sorted(context.machines.label(node) for node in nodes)), job.submission)
    with _REPORTING:
        known = loaded(store.facts().get(REPORTED, ""))
        new = unknown_part(known, one, now_s)
        if new is not None:
            store.put_facts({REPORTED: dumped(added(known, [new], now_s))})
    if new is not None:
        said = f"reports {', '.join(new.nodes)} as faulty"
        data = {"nodes": list(new.nodes), "attempt": job.submission}
        store.add_events([QueueEvent(now_s, FAULTY, said, job.job_id, data)])


def _current(context: ServiceContext, message: Register | Beat) -> Job | None:
    """Return the job of an attempt; None: the attempt is over."""
    try:
        job = context.store.job(message.job_id)
    except UnknownJob:  # its rows were removed
        return None
    return job if job.attempt == message.attempt and job.state in HOLDS_A_LEASE else None


def _order(job: Job) -> tuple[Instruction, str]:
    if job.wanted in _ASKED:
        return Instruction.STOP, _ASKED[job.wanted]
    if job.state is State.STOPPING:
        return Instruction.STOP, job.message or job.reason.value
    return Instruction.GO_ON, ""


def _parents(context: ServiceContext, job: Job) -> list[Job]:
    """Return the parents that belong to the same tenant and still exist."""
    found = []
    for parent in job.after:
        try:
            known = context.store.job(parent)
        except UnknownJob:
            continue
        found += [known] if known.tenant == job.tenant else []
    return found


def _with_model(context: ServiceContext, job: Job, spec: dict[str, Any]) -> dict[str, Any]:
    """Replace `run:JOB` by the directory of the model that the job has exported. Raises QueueError."""
    if isinstance(base := spec.get("base"), dict):  # of a sweep or a comparison
        return {**spec, "base": _with_model(context, job, base)}
    model = spec.get("model")
    path = model.get("path") if isinstance(model, dict) else None
    name = run_named(path) if isinstance(path, str) else None
    if not isinstance(model, dict) or name is None:
        return spec
    try:
        source = context.store.job(name)
    except UnknownJob:
        source = None
    if source is None or source.tenant != job.tenant or source.run is None:
        raise QueueError(f"model.path is {path}, and that job has left no run: give the model's path instead")
    return {**spec, "model": {**model, "path": JobPaths(source.run).model}}


def _secrets(context: ServiceContext, job: Job, spec: dict[str, Any]) -> dict[str, str]:
    """Return the secrets that the job asks for and that its tenant has now.

    Raises:
        QueueError: the tenant was not given one of them, or the server lacks it.
        StoreBroken: the row of the tenant cannot be read, so its secrets are unknown. The driver asks again.
    """
    names = (spec.get("queue") or {}).get("secrets") or ()
    if not names:
        return {}
    tenant = context.tenant(job.tenant)
    if tenant is None or any((row.table, row.name) == ("tenant", tenant.name) for row in context.store.unreadable()):
        raise StoreBroken(f"the settings of tenant {job.tenant!r} cannot be read, so its secrets are not known")
    for wrong in wrong_secrets(names, tenant, context.secrets):
        raise wrong
    return {name: context.secrets[name] for name in names}


def _run(context: ServiceContext, job: Job, spec: dict[str, Any]) -> str | None:
    """Return the run of a job that trains. It is the same for all attempts, and chosen before anything is written.

    The server reads files of the run for other users, so the driver must not choose it.
    """
    if job.run is not None or job.kind == "command":
        return job.run
    now_s = context.clock.now_s()
    name = new_run_name(job.name, datetime.datetime.fromtimestamp(now_s, datetime.UTC))
    root = JobPaths.of(job_in(spec)["storage_path"], name).root
    context.store.measure([Measured(job.job_id, job.attempt, run=root)], now_s)
    return context.store.job(job.job_id).run  # another server may have been faster


def plausible(said: Measured, job: Job, now_s: float) -> Measured:
    """Return the report with every number within its bounds. Numbers that are not finite are dropped.

    The scheduler weighs jobs by these numbers, and a driver may report wrong ones, by mistake or to its own advantage.
    An interruption costs at most the time of this attempt, plus an allowance for saving and starting again.
    """
    held_s = max(now_s - job.started_s, 0.0) if job.started_s is not None else 0.0
    return replace(
        said,
        step=_whole(said.step),
        total_steps=_whole(said.total_steps),
        remaining_s=_within(said.remaining_s, LONGEST_S),
        interruption_cost_s=_within(said.interruption_cost_s, min(held_s + RESTART_S, LONGEST_S)),
        metrics=None if said.metrics is None else _metrics(said.metrics),
    )


def _within(value: float | None, most: float) -> float | None:
    return min(max(value, 0.0), most) if value is not None and math.isfinite(value) else None


def _whole(value: int | None) -> int | None:
    return None if value is None else min(max(value, 0), MOST_STEPS)


def _metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    finite = ((name, value) for name, value in metrics.items() if math.isfinite(value))
    return {name: min(max(value, -LARGEST_METRIC), LARGEST_METRIC) for name, value in finite}
