"""The exceptions of Fleetune. One tree; each answers "what now?".

FleetuneError                    anything that Fleetune itself reports, as one readable message
├── InputError        (exit 2)   the same input would fail again: never retried
│   ├── SpecError                the job's spec is wrong
│   ├── DataError                the data, the model directory or a column is wrong
│   │   └── MetricFailed         a user's metric failed, on every rank alike
│   ├── StorageError             a URL cannot be read or written
│   │   └── StorageOutage (exit 75)  the storage does not answer now: the same may succeed later
│   ├── TraceError               a trace of jobs cannot be simulated as it is
│   ├── CapacityError            no set of nodes of this cluster can ever hold the gang
│   └── LaunchRefused            a program can never start on these machines
├── RunFailed         (exit 1)   training started and failed
│   ├── Diverged                 the loss is not finite, or steps change nothing: on every rank alike
│   └── OutOfMemory              a process needed more memory than there was
├── MachinesFailed    (exit 75)  a node or the cluster is gone: the same may succeed elsewhere
├── BackendUnreachable           the machines do not answer now; Fleetune tries again later
├── Fenced                       a newer caller has taken over: this one must not act any more
└── Interrupted       (exit 130) the run was asked to stop
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Self


@dataclass(frozen=True)
class Mistake:
    """One mistake in an input. Code reads the fields; people read `str(mistake)`.

    Attributes:
        message: what is wrong and what to do, without the name of the field.
        field: dotted name of the field, as `train.learning_rate`; empty: the mistake is in no single field.
        place: where the field is written, as `job.yaml:12`; empty: unknown.
        spec: number of the spec in its submission, counted from 1; None: there is only one, or none is to blame.
    """

    message: str
    field: str = ""
    place: str = ""
    spec: int | None = None

    def __str__(self) -> str:
        place = self.place or (f"spec {self.spec}" if self.spec else "")
        return ": ".join(filter(None, (place, self.field, self.message)))


class FleetuneError(Exception):
    """Base of all errors that are printed as one message, without a traceback."""

    exit_code = 1


class InputError(FleetuneError):
    """The input is wrong, and would be wrong again, so it is never retried."""

    exit_code = 2
    _mistakes: tuple[Mistake, ...] = ()

    @classmethod
    def of(cls, mistakes: Iterable[Mistake]) -> Self:
        """Make one error of several mistakes. The message has one line for each."""
        found = tuple(mistakes)
        error = cls("\n".join(map(str, found)))
        error._mistakes = found
        return error

    @classmethod
    def at(cls, field: str, message: str) -> Self:
        """Make an error of one mistake in one field."""
        return cls.of([Mistake(message, field)])

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """The mistakes that the message is made of; never empty."""
        return self._mistakes or (Mistake(str(self)),)


class SpecError(InputError):
    """The spec does not describe a job that can run."""


class DataError(InputError):
    """The data set, tokenizer or model directory does not fit the spec."""


class MetricFailed(DataError):
    """A user's metric failed. Every rank raises it at the same place, so the gang is whole afterwards."""


class StorageError(InputError):
    """A path or URL cannot be read or written."""


class StorageOutage(StorageError):
    """The storage did not answer, or reported that it is unavailable. A queue tries the job again."""

    exit_code = 75


class TraceError(InputError):
    """A file is not a trace of jobs, or has rows that no cluster could run."""


class CapacityError(InputError):
    """The cluster can never hold the gang that the spec asks for."""


class LaunchRefused(InputError):
    """A program can never start on these machines as it is."""


class BackendUnreachable(FleetuneError):
    """The machines do not answer now. It is unknown whether they have carried out the request."""


class Fenced(FleetuneError):
    """A newer caller has taken over, so this one must not act any more."""


class RunFailed(FleetuneError):
    """Training started and did not succeed. The message names the run's log.

    Attributes:
        rank: the rank that failed; None: no single one did, or it is not known.
        is_final: a resume would do nothing more.
    """

    def __init__(self, message: str, rank: int | None = None, *, is_final: bool = False) -> None:
        super().__init__(message)
        self.rank, self.is_final = rank, is_final


class Diverged(RunFailed):
    """The loss is not finite, or steps change nothing.

    Every rank raises it at the same place, so the gang is whole afterwards. The driver of a queued job then ends with
    `DIVERGED_EXIT`.
    """


class OutOfMemory(RunFailed):
    """A process needed more memory than there was. The message says which process, and what to change.

    The driver of a queued job then ends with `OUT_OF_MEMORY_EXIT`, for which the queue has a rule.
    """


class MachinesFailed(FleetuneError):
    """A node or the cluster is gone. A queue tries the job again, elsewhere."""

    exit_code = 75


class Interrupted(FleetuneError):
    """The run was asked to stop before its end."""

    exit_code = 130


class RunTaken(Interrupted):
    """Another driver has taken the run, so this one must not write into its directory any more."""


# The exit code of a driver whose node or cluster failed: the queue starts the job again. The others: 0 succeeded,
# 1 failed, 2 bad input, 130 stopped.
TRY_AGAIN_EXIT: Final = MachinesFailed.exit_code
# The job ran out of memory. The queue starts it again only a few times: the same input may need as much memory again.
OUT_OF_MEMORY_EXIT: Final = 76
# The training diverged. The queue fails the job and advises no retry, which would compute the same.
DIVERGED_EXIT: Final = 77
