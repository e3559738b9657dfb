"""Release a job whose driver cannot be stopped because its node is gone. An administrator closes its lease."""

from __future__ import annotations

from orchestrator.queue.errors import NotReleasable
from orchestrator.queue.records import Job
from orchestrator.queue.states import ENDED, State
from orchestrator.service.context.caller import Caller
from orchestrator.service.context.context import ServiceContext


def release(context: ServiceContext, job: Job, caller: Caller) -> Job:
    """Close the lease of a STOPPING job, unless its driver may still run on a node that answers.

    A node answers if the cluster lists it as alive now. If the backend knows the driver's node, only this node counts;
    otherwise all nodes of the lease do.

    Raises:
        Forbidden: the caller is not an admin.
        NotReleasable: the job is not stopping, or a node answers.
        BackendUnreachable: the cluster does not say which nodes are alive.
    """
    caller.check_is_admin()
    if job.state is not State.STOPPING:
        what = "it has ended and holds no nodes" if job.state in ENDED else "cancel it first"
        raise NotReleasable(f"only a job that is stopping can be released, and {job.job_id} is {job.state}: {what}")
    alive = {node.node_id for node in context.backend.inventory().nodes}
    driver = next((one for one in context.backend.submissions() if one.submission == job.submission), None)
    nodes = {node for node, _ in job.placement} if driver is None or driver.node_id is None else {driver.node_id}
    if answering := sorted(nodes & alive):
        label = context.machines.label(answering[0])
        raise NotReleasable(
            f"{label} answers (the cluster lists it as alive), and the driver of {job.job_id} may still run there. The "
            "queue goes on ending it; end its processes there by hand, or take the node out of the cluster"
        )
    return context.store.release(job.job_id, job.attempt, context.clock.now_s(), caller.name)
