"""The decisions and the interfaces: the queue and its server, the command line, and the SDK, which this module exports.

May import `jobs` and `cluster`. Start with `client` for the SDK, with `cli` for the commands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.errors import FleetuneError
    from jobs.spec.load import load_job_spec, load_spec
    from orchestrator.client.client import Client
    from orchestrator.client.handle import JobCancelled, JobFailed, JobHandle, Result
    from orchestrator.client.plans import GangPlan

__all__ = [
    "Client",
    "FleetuneError",
    "GangPlan",
    "JobCancelled",
    "JobFailed",
    "JobHandle",
    "Result",
    "load_job_spec",
    "load_spec",
]

# Imported on first use, so that `import orchestrator` stays fast for every module of the package.
_HOMES = {
    "Client": "orchestrator.client.client",
    "FleetuneError": "cluster.errors",
    "GangPlan": "orchestrator.client.plans",
    **dict.fromkeys(("JobCancelled", "JobFailed", "JobHandle", "Result"), "orchestrator.client.handle"),
    **dict.fromkeys(("load_job_spec", "load_spec"), "jobs.spec.load"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
