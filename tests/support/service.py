"""The service core on a made-up cluster: what it works with, and specs as clients send them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.capacity.inventory import Growth
from jobs.drivers.link.messages import Beat
from orchestrator.queue.records import Job, Role
from orchestrator.queue.states import State
from orchestrator.queue.tenants import Restrictions, Tenant
from orchestrator.service.admission.admit import admit
from orchestrator.service.context.caller import ANYBODY, Caller
from orchestrator.service.context.context import ServiceContext
from orchestrator.service.drivers import launch_of
from tests.support.queueworld import NO_GROWTH, QueueWorld

ANNA, BERT, VERA = Caller("anna", Role.MEMBER, "a"), Caller("bert", Role.MEMBER, "b"), Caller("vera", Role.VIEWER, "a")


class ServiceWorld(QueueWorld):
    """A queue, and the service around it. Tenants a and b may use all secrets; drivers are those of the service."""

    def __init__(self, *gpus: int, url: str = "sqlite://", growth: Growth = NO_GROWTH, **settings: Any) -> None:
        limits = Restrictions(secrets=tuple(settings.get("secrets", ())))
        super().__init__(*gpus, url=url, tenants=[Tenant(name, restrictions=limits) for name in "ab"], growth=growth)
        given: dict[str, Any] = {"one_machine": True, "engine": "fake", "url": "http://server", "python": ("python",)}
        self.context = ServiceContext(self.store, self.backend, self.clock, **{**given, **settings})
        self.server = self.another(launch=launch_of(self.context))

    def admit(self, *specs: Mapping[str, Any], by: Caller = ANNA, client: str | None = None) -> list[Job]:
        """Let in and submitted."""
        return list(self.store.submit(admit(self.context, specs, by, client), self.clock()))

    def started(self, spec: Mapping[str, Any]) -> Job:
        (job,) = self.admit(spec)
        self.passes(2)
        job = self.job(job.job_id)
        assert job.state is State.RUNNING
        return job

    def close(self) -> None:
        self.context.close()
        self.store.close()


def beat_of(job: Job, **more: Any) -> Beat:
    """What the driver of a job says."""
    return Beat(job_id=job.job_id, attempt=job.attempt, **more)


def command(name: str = "job", **more: Any) -> dict[str, Any]:
    return {"kind": "command", "name": name, "command": ["python", "-m", "evaluate"], **more}


def queue(**asks: Any) -> dict[str, Any]:
    return {"queue": asks}


def finetune(
    model: str = "org/model", data: str | Sequence[str] = "s3://bucket/data.jsonl", **more: Any
) -> dict[str, Any]:
    spec = {"model": {"path": model, "task": "causal-lm"}, "data": {"train": data, "format": "text"}}
    return {**spec, "name": "train", "storage_path": "s3://bucket/runs", **more}


def sweep(base: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    data = {"train": "s3://bucket/data.jsonl", "format": "text", "eval_fraction": 0.1}
    return {"kind": "sweep", "name": "found", "base": base or {**finetune(), "data": data}, **more}


__all__ = ["ANNA", "ANYBODY", "BERT", "VERA", "ServiceWorld", "beat_of", "command", "finetune", "queue", "sweep"]
