"""The plan of a job on given machines: what memory and time it takes, as values. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.planning.accelerators import Machines
from jobs.planning.precision import Precision
from jobs.planning.strategies import Free, Option, chosen, nearest


@dataclass(frozen=True)
class JobPlan:
    """What a job needs.

    Attributes:
        options: ways to train; the spec's values first.
        free: fields that the spec leaves out, which the plan may choose.
        total_steps: of the whole run; None: not known before the data is prepared.
        parameters: of the model, in elements.
        note: what the estimate does not know about this model; None: nothing.
    """

    machines: Machines
    precision: Precision
    parameters: int
    seq_len: int
    options: tuple[Option, ...]
    free: frozenset[Free]
    total_steps: int | None
    note: str | None = None

    @property
    def device(self) -> str:
        """What a worker has, for people: GPU or worker."""
        return "worker" if self.machines.is_cpu else "GPU"

    @property
    def written(self) -> Option:
        """The spec's values, with the defaults of the fields that it leaves out."""
        return self.options[0]

    @property
    def chosen(self) -> Option | None:
        return chosen(self.options)

    @property
    def nearest(self) -> Option:
        """The option that lacks least memory."""
        return nearest(self.options)

    def hours(self, option: Option) -> float | None:
        """Hours of training, without the start, evaluations and checkpoints."""
        return None if self.total_steps is None else self.total_steps * option.time.seconds / 3600
