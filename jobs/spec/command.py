"""The spec of kind `command`: a user's program on a gang, such as an evaluation. Light to import."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from cluster.capacity.gang import MOST_GPUS_PER_WORKER, Gang
from jobs.frozen import Frozen
from jobs.spec.bounds import CpusPerWorker, Workers, name_field
from jobs.spec.finetune import SCHEMA_VERSION
from jobs.spec.queue import MOST_KEYS, Queue, VariableName
from jobs.spec.references import absolute_working_dir, folder_of
from jobs.spec.vary import JobSpec

Word = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=100_000)]


class CommandResources(Frozen):
    """The gang of a command: all its processes start together, or none does."""

    num_workers: Workers = Field(1, description="Number of processes of the program.")
    gpus_per_worker: int = Field(0, ge=0, le=MOST_GPUS_PER_WORKER, description="GPUs that each process sees.")
    cpus_per_worker: CpusPerWorker = Field(1, description="CPU cores of each process.")
    accelerator_type: str | None = Field(
        None, description="Only GPUs of this type, as Ray names it (A100, H100). No effect without GPUs."
    )

    @model_validator(mode="after")
    def _gang_has_a_possible_size(self) -> CommandResources:
        Gang(self.num_workers, self.cpus_per_worker, self.gpus_per_worker).check_size()
        return self


class CommandSpec(JobSpec):
    """A program on a gang. If there are several processes, each gets RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR."""

    version: Literal[1] = Field(SCHEMA_VERSION, description="Version of this schema.")
    kind: Literal["command"] = Field(description="command.")
    name: str = name_field("command", "the job's name")
    command: tuple[Word, ...] = Field(
        min_length=1, fail_fast=True, description="Program and arguments, as a list; no shell interprets them."
    )
    working_dir: str | None = Field(
        None, min_length=1, description="Directory in which the program runs (relative to the spec's file)."
    )
    env: dict[VariableName, Word] = Field(
        default_factory=dict, max_length=MOST_KEYS, description="Variables added to the program's environment."
    )
    resources: CommandResources = Field(default_factory=CommandResources, description="The gang.")
    queue: Queue = Field(default_factory=Queue, description="What the job asks of the queue.")

    def with_absolute_paths(self, path: str) -> CommandSpec:
        return self.model_copy(update={"working_dir": absolute_working_dir(self.working_dir, folder_of(path))})
