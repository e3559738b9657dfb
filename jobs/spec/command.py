"""A job that runs a program of the user's own on a gang: evaluation, generation, preparation. Light to import."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from cluster.capacity.gang import MOST_CPUS_PER_WORKER, MOST_GPUS_PER_WORKER, MOST_WORKERS, Gang
from jobs.frozen import Frozen
from jobs.spec.finetune import SCHEMA_VERSION
from jobs.spec.queue import MOST_KEYS, Queue, VariableName

Word = Annotated[str, StringConstraints(pattern=r"^[^\x00]*$", max_length=100_000)]


class CommandResources(Frozen):
    """The gang: as many processes, all of which start together, or none."""

    num_workers: int = Field(1, ge=1, le=MOST_WORKERS, description="Number of processes of the program.")
    gpus_per_worker: int = Field(0, ge=0, le=MOST_GPUS_PER_WORKER, description="GPUs that each of them sees.")
    cpus_per_worker: int = Field(1, ge=1, le=MOST_CPUS_PER_WORKER, description="CPU cores for each of them.")
    accelerator_type: str | None = Field(None, description="Only GPUs of this type, as Ray names it (A100, H100).")

    @model_validator(mode="after")
    def _a_cluster_could_hold_it(self) -> CommandResources:
        Gang(self.num_workers, self.cpus_per_worker, self.gpus_per_worker).check_size()
        return self


class CommandSpec(Frozen):
    """A program on a gang. With several workers each process gets RANK, WORLD_SIZE, LOCAL_RANK and MASTER_ADDR."""

    version: Literal[1] = Field(SCHEMA_VERSION, description="Version of this schema.")
    kind: Literal["command"] = Field(description="command.")
    name: str = Field(
        "command",
        pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$",
        description="Start of the job's name: lower-case letters, digits, '.', '_' and '-'.",
    )
    command: tuple[Word, ...] = Field(
        min_length=1, fail_fast=True, description="Program and arguments, as a list: there is no shell between."
    )
    working_dir: str | None = Field(
        None, min_length=1, description="Directory in which it runs (relative to the spec's file)."
    )
    env: dict[VariableName, Word] = Field(
        default_factory=dict, max_length=MOST_KEYS, description="Variables that are added."
    )
    resources: CommandResources = Field(default_factory=CommandResources, description="The gang.")
    queue: Queue = Field(default_factory=Queue, description="What it asks of the queue.")

    def vary(self, fields: Mapping[str, Iterable[Any]] | None = None, /, **named: Iterable[Any]) -> list[CommandSpec]:
        """All combinations of some fields' values, as in `vary({"env.SHARD": ["0", "1"]})` (see `jobs.spec.vary`)."""
        from jobs.spec.vary import vary  # it is about specs of all kinds

        return vary(self, {**(fields or {}), **named})
