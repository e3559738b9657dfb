"""What the job of `queue.on_end` takes over from the job that has ended."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from orchestrator.queue.states import State
from orchestrator.service.admission.follow_ups import follower
from tests.support.queuejobs import job


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("command", {"working_dir": "/code"}),
        ("finetune", {"working_dir": "/code"}),
        ("sweep", {"base": {"working_dir": "/code"}}),
        ("compare", {"base": {"working_dir": "/code"}}),
    ],
)
def test_a_command_of_on_end_runs_where_its_job_has_run(kind: str, spec: dict[str, object]) -> None:
    ended = replace(job(state=State.FAILED), kind=kind, on_end=json.dumps({"command": ["./notify.sh"]}))
    made = json.loads(follower(ended, spec, ("python",)).spec)
    assert (made["command"], made["working_dir"]) == (["./notify.sh"], "/code")
