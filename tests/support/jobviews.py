"""Jobs as a server tells them."""

from __future__ import annotations

from typing import Any

from orchestrator.api import JobView
from orchestrator.queue.states import DesiredState, Reason, State

NOW_S = 1_800_000_000.0


def job(job_id: str, state: State = State.QUEUED, **changes: Any) -> JobView:
    facts: dict[str, Any] = {
        "job_id": job_id, "number": 1, "name": "job", "kind": "finetune", "tenant": "vision", "submitted_by": "anna",
        "num_workers": 4, "cpus_per_worker": 2, "gpus_per_worker": 1, "accelerator_type": None, "priority": 0,
        "after": (), "max_runtime_s": None, "preemptible": True, "submitted_s": NOW_S - 600.0,
        "wanted": DesiredState.RUN, "state": state, "reason": Reason.SUBMITTED, "message": "", "attempt": 0,
        "placement": (), "waited_s": 125.0,
        "started_s": None, "attained_s": 0.0, "ended_s": None, "remaining_s": None, "interruptions": 0, "heard_s": None,
        "run": None, "step": 0, "total_steps": None, "metrics": {}, "changed": 1,
    }  # fmt: skip
    return JobView(**facts | changes)
