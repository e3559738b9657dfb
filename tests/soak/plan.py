"""What happens in a soak, and when: a pure function of a seed and a length. Nothing here acts.

Every moment has a random source of its own, made of the seed and its number: what comes later in a plan does not
depend on how much chance the earlier took, and a longer soak begins with the same acts as a shorter one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from cluster.text import many


class Kind(StrEnum):
    SUBMIT = "submit"
    CANCEL = "cancel"
    PAUSE = "pause"  # and resume
    PRIORITY = "priority"
    SERVER_KILL = "server-kill"  # and start again
    SERVER_FREEZE = "server-freeze"
    DRIVER_KILL = "driver-kill"
    DRIVER_FREEZE = "driver-freeze"
    WORKER_KILL = "worker-kill"  # Ray's process on a node, with the program or the training in it
    PROGRAM_KILL = "program-kill"  # the program of a command itself: its job fails
    NODE_KILL = "node-kill"  # its raylet; and start again
    DRAIN = "drain"  # by an order to the queue; and take it back
    RAY_DRAIN = "ray-drain"  # Ray's own, as of a spot notice; the node goes, and comes back
    LINK_DOWN = "link-down"


# How often, relative to the others, and for how long: until the resume, the restart, the order taken back.
CHANCES: Mapping[Kind, tuple[float, tuple[float, float]]] = {
    Kind.CANCEL: (1.0, (0.0, 0.0)),
    Kind.PAUSE: (2.0, (3.0, 15.0)),
    Kind.PRIORITY: (1.5, (0.0, 0.0)),
    Kind.SERVER_KILL: (2.0, (0.0, 12.0)),
    Kind.SERVER_FREEZE: (1.5, (2.0, 25.0)),
    Kind.DRIVER_KILL: (2.0, (0.0, 0.0)),
    Kind.DRIVER_FREEZE: (1.5, (2.0, 25.0)),
    Kind.WORKER_KILL: (2.0, (0.0, 0.0)),
    Kind.PROGRAM_KILL: (0.7, (0.0, 0.0)),
    Kind.NODE_KILL: (1.0, (2.0, 15.0)),
    Kind.DRAIN: (1.5, (5.0, 20.0)),
    Kind.RAY_DRAIN: (0.7, (10.0, 25.0)),
    Kind.LINK_DOWN: (1.0, (2.0, 45.0)),
}
HARD = frozenset({Kind.DRIVER_KILL, Kind.DRIVER_FREEZE, Kind.WORKER_KILL, Kind.NODE_KILL, Kind.LINK_DOWN})
HARD |= {Kind.RAY_DRAIN}  # where its time is over before the job has saved

FAULT_EVERY_S, SUBMIT_EVERY_S = (4.0, 16.0), (10.0, 26.0)  # two cores start a job in some 10 s of their time
FIRST_FAULT_S = 15.0  # something shall run by then
JOBS_AT_ONCE = 4  # that are there from the beginning
TRAINING_EVERY = 6  # so many jobs are one training and else commands


@dataclass(frozen=True)
class Work:
    """A job: a command that lives for a while and ends with a code, or a training of so many steps."""

    number: int
    training: bool
    num_workers: int
    runs_s: float
    exit_code: int
    steps: int
    priority: int
    preemptible: bool

    @property
    def name(self) -> str:
        return f"soak-{self.number:03d}-{'train' if self.training else 'command'}"


@dataclass(frozen=True)
class Act:
    """One thing that is done.

    Attributes:
        at_s: from the beginning.
        target: which of those that there are then, counted round and round: jobs by submission, nodes by name.
        for_s: until it is undone, where there is something to undo.
        value: of a change of priority.
        work: of a submission.
    """

    at_s: float
    kind: Kind
    target: int = 0
    for_s: float = 0.0
    value: int = 0
    work: Work | None = None

    def __str__(self) -> str:
        told = f"{self.at_s:7.1f} s  {self.kind:<14}"
        if self.work is not None:
            what = f"{self.work.steps} steps" if self.work.training else f"{self.work.runs_s:.0f} s"
            code = f", exit {self.work.exit_code}" if self.work.exit_code else ""
            return f"{told}{self.work.name}: {what}, {many(self.work.num_workers, 'worker')}{code}"
        value = f", to {self.value}" if self.kind is Kind.PRIORITY else ""
        return f"{told}target {self.target}" + (f", for {self.for_s:.1f} s" if self.for_s else "") + value


@dataclass(frozen=True)
class Plan:
    """All that a soak does, in its order."""

    seed: int
    length_s: float
    acts: tuple[Act, ...]

    def __str__(self) -> str:
        head = f"seed {self.seed}, {self.length_s:.0f} s, {len(self.acts)} acts"
        return "\n".join([head, *map(str, self.acts)])


def plan(seed: int, length_s: float, submit_until_s: float | None = None) -> Plan:
    """
    Args:
        submit_until_s: nothing is submitted later; None: at four fifths of the length.
    """
    until_s = length_s * 0.8 if submit_until_s is None else submit_until_s
    first = [Act(0.0, Kind.SUBMIT, work=work(seed, number)) for number in range(JOBS_AT_ONCE)]
    acts = [*first, *_submissions(seed, until_s), *_faults(seed, length_s)]
    return Plan(seed, length_s, tuple(sorted(acts, key=lambda act: act.at_s)))


def work(seed: int, number: int) -> Work:
    chance = _chance(seed, "work", number)
    training = number % TRAINING_EVERY == 0
    return Work(
        number,
        training,
        num_workers=2 if training else chance.choice((1, 1, 2)),
        runs_s=round(chance.uniform(2.0, 20.0), 1),
        exit_code=0 if training or chance.random() < 0.85 else 3,
        steps=chance.randrange(150, 400) if training else 0,
        priority=chance.choice((0, 0, 0, 5)),
        preemptible=training or chance.random() < 0.5,
    )


def _submissions(seed: int, until_s: float) -> Iterator[Act]:
    at_s = 0.0
    for number in range(JOBS_AT_ONCE, 100_000):
        at_s += _chance(seed, "submission", number).uniform(*SUBMIT_EVERY_S)
        if at_s > until_s:
            return
        yield Act(round(at_s, 1), Kind.SUBMIT, work=work(seed, number))


def _faults(seed: int, until_s: float) -> Iterator[Act]:
    at_s = FIRST_FAULT_S
    for number in range(100_000):
        chance = _chance(seed, "fault", number)
        if at_s > until_s:
            return
        (kind,) = chance.choices(list(CHANCES), [weight for weight, _ in CHANCES.values()])
        for_s = round(chance.uniform(*CHANCES[kind][1]), 1)
        value = chance.randrange(-10, 11) if kind is Kind.PRIORITY else 0
        yield Act(round(at_s, 1), kind, chance.randrange(1000), for_s, value)
        at_s += chance.uniform(*FAULT_EVERY_S)


def _chance(seed: int, what: str, number: int) -> random.Random:
    return random.Random(f"{seed} {what} {number}")
