"""Decides whether a worker group hangs, and which rank is to blame. Pure.

The evidence is two observations of every rank, some seconds apart: what the rank does and for how long (`Pulse`), and
the state of its process. A rank that moves between them proves that the group is healthy. `hang_watch` acts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

LEAST_S: Final = 10.0  # no shorter silence is a hang
_TIMES_LONGEST: Final = 3.0  # a step or an evaluation may take this many times the longest one of its kind before
# For a group in which every rank computes or waits in a collective: a step may be slow because the machine is busy.
_LEAST_BUSY_S, _TIMES_LONGEST_BUSY = 60.0, 10.0
_BUSY_SHARE = 0.25  # of one CPU, between the two observations
_RUNNABLE: Final = "R"  # a thread that computes has this state also where it gets little of the CPU
_STOPPED: Final = "T"  # state of a process that SIGSTOP has stopped; a debugger's stop is "t"


class Doing(StrEnum):
    """The activity of a rank's loop. Only a step and the evaluations have a bound."""

    STEP = "step"
    EVALUATION = "evaluation"  # of held-out rows
    GENERAL = "general"  # the evaluation of general text, which may take a hundred times as long, or a hundredth
    DATA = "data"  # waits for the rows of the next step
    OTHER = "other"  # loads, writes a checkpoint, exports


@dataclass(frozen=True)
class Pulse:
    """The newest mark of a rank's loop.

    Attributes:
        step: 1-based number of the step that is or was computed last; 0 before the first.
        since_s: time of the mark on the monotonic clock of its host.
        longest_step_s, longest_evaluation_s, longest_general_s: of this process, without its first step; None: there
            was none.
    """

    rank: int
    pid: int
    doing: Doing = Doing.OTHER
    step: int = 0
    since_s: float = 0.0
    longest_step_s: float | None = None
    longest_evaluation_s: float | None = None
    longest_general_s: float | None = None

    @property
    def longest_s(self) -> float | None:
        """The duration that bounds what the rank does; None if it has no bound."""
        bounds = {
            Doing.STEP: self.longest_step_s,
            Doing.EVALUATION: self.longest_evaluation_s,
            Doing.GENERAL: self.longest_general_s,
        }
        return bounds.get(self.doing)


@dataclass(frozen=True)
class RankState:
    """One observation of a rank's process.

    Attributes:
        age_s: seconds since the pulse's mark.
        state: letter of /proc/PID/stat: T if the process is stopped, else R or D if a thread of it is.
        cpu_s: CPU time of the process so far.
        waits: a thread waits for other ranks in a collective.
        frames: innermost calls of the thread that trains, innermost first; empty without a stack.
        stack: the stacks of all threads, as faulthandler writes them.
    """

    pulse: Pulse
    host: str
    age_s: float
    state: str
    cpu_s: float
    waits: bool = False
    frames: tuple[str, ...] = ()
    stack: str = ""

    @property
    def is_stopped(self) -> bool:
        return self.state == _STOPPED


@dataclass(frozen=True)
class Observations:
    """Two observations of one rank."""

    first: RankState
    second: RankState
    apart_s: float

    @property
    def moved(self) -> bool:
        return self.first.pulse != self.second.pulse

    @property
    def is_stopped(self) -> bool:
        return self.first.is_stopped and self.second.is_stopped

    @property
    def waits(self) -> bool:
        return self.first.waits and self.second.waits

    @property
    def is_idle(self) -> bool:
        runnable = self.first.state == self.second.state == _RUNNABLE
        return not runnable and self.second.cpu_s - self.first.cpu_s < _BUSY_SHARE * self.apart_s


@dataclass(frozen=True)
class Hang:
    """A group that makes no progress, and the rank to kill.

    Attributes:
        why: verb phrase: what the rank's process does.
        is_to_blame: False if all ranks wait for others, as after the loss of a connection between any two of them.
    """

    rank: RankState
    why: str
    is_to_blame: bool = True


def limit_s(longest_s: float) -> float:
    """Return how long the present step or evaluation may take, given the longest one of its kind before."""
    return max(LEAST_S, _TIMES_LONGEST * longest_s)


def hang_of(ranks: Sequence[Observations], num_ranks: int) -> Hang | None:
    """Return the hang that the observations prove; None if the group may be healthy.

    A rank that waits for rows, writes a checkpoint or exports may take any time, and the others wait for it. Only a
    stopped process is to blame whatever it does.

    Args:
        ranks: the ranks that were found. A missing one may have ended, so nothing is decided.
        num_ranks: of the group.
    """
    if len({observed.second.pulse.rank for observed in ranks}) < num_ranks or any(observed.moved for observed in ranks):
        return None
    quiet_s = min(observed.second.age_s for observed in ranks)
    longest_step_s = max((observed.second.pulse.longest_step_s or 0.0 for observed in ranks), default=0.0)
    stopped = [observed for observed in ranks if observed.is_stopped]
    if stopped:
        return _hang(stopped, "is stopped by a signal") if quiet_s >= limit_s(longest_step_s) else None
    bounds = [observed.second.pulse.longest_s for observed in ranks]
    longest_s = max((bound for bound in bounds if bound is not None), default=0.0)
    if None in bounds or quiet_s < limit_s(longest_s):
        return None
    outside = [observed for observed in ranks if not observed.waits]
    idle = [observed for observed in outside if observed.is_idle]
    if idle:
        return _hang(idle, "waits, but not for other ranks")
    if quiet_s < max(_LEAST_BUSY_S, _TIMES_LONGEST_BUSY * longest_s):
        return None
    if outside:
        return _hang(outside, "computes and never finishes")
    return _hang(ranks, "waits for ranks that wait as well", is_to_blame=False)


def _hang(ranks: Sequence[Observations], why: str, is_to_blame: bool = True) -> Hang:
    return Hang(min((observed.second for observed in ranks), key=lambda one: one.pulse.rank), why, is_to_blame)
