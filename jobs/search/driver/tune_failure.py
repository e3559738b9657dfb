"""Turns an error of Ray Tune into the error with which the sweep ends."""

from __future__ import annotations

from cluster.errors import FleetuneError, MachinesFailed, RunFailed
from jobs.model_files.directory import supports_checkpointing
from jobs.remedies.out_of_memory import advice
from jobs.spec.finetune import Spec
from jobs.training.faults import first_line
from jobs.training.on_ray.crash import How, crashes_of


def error_of_tune(error: Exception, spec: Spec) -> FleetuneError:
    """Return the error with which the sweep ends. Ray may kill Tune's actor together with a worker, for memory.

    Args:
        spec: of the base job, whose fields the advice names.
    """
    crash = next(iter(crashes_of(error.__cause__ or error)), None)
    if crash is None:
        return RunFailed(f"Ray Tune failed: {first_line(error)}")
    said = f"Ray Tune ended because {crash}"
    if crash.how is not How.MEMORY:
        return MachinesFailed(said)
    return MachinesFailed(f"{said}. {advice(spec, checkpointing=supports_checkpointing(spec))}")
