"""Checks whether this machine has the devices that a spec asks for. Light to import and fast."""

from __future__ import annotations

from cluster.local.machine import has_gpus
from jobs.spec.finetune import Spec


def no_gpu_here(spec: Spec) -> str | None:
    """Explain why the spec cannot train here without a GPU, and what to write; None if it can train."""
    if not spec.resources.gpus_per_worker or has_gpus():
        return None
    return (
        "this machine has no GPU, and the spec asks for one GPU per worker (resources.gpus_per_worker, 1 if left out). "
        "To train on its CPUs, write `resources: {gpus_per_worker: 0}` into the spec, or add "
        "`--set resources.gpus_per_worker=0`. To train on a cluster, give `--address`"
    )
