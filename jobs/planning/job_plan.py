"""The plan of a job on given machines: its memory and time, as values. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.planning.accelerators import Machines
from jobs.planning.precision import Precision
from jobs.planning.strategies import Option, chosen, nearest
from jobs.spec.finetune import Planned


@dataclass(frozen=True)
class JobPlan:
    """The needs of a job on the machines.

    Attributes:
        options: ways to train; the spec's values first.
        free: fields that the spec leaves out, which the plan may choose.
        total_steps: of the whole run; None: not known before the data is prepared.
        parameters, trained: of the model and of these the trained ones, in elements.
        note: a limit of the estimate for this model, in words; None: there is none.
    """

    machines: Machines
    precision: Precision
    parameters: int
    trained: int
    seq_len: int
    options: tuple[Option, ...]
    free: frozenset[Planned]
    total_steps: int | None
    note: str | None = None

    @property
    def device(self) -> str:
        """The unit of a plan in messages: GPU, or worker if workers have none."""
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
