"""The machines of `FakeBackend`: their clock, the programs that were started there, their scripts, and failures."""

from __future__ import annotations

import fnmatch
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cluster.backend import MAX_OUTPUT_BYTES, Launch, Phase, Submission, check_fence, check_launch
from cluster.capacity.inventory import Inventory, Node
from cluster.errors import BackendUnreachable, LaunchRefused
from cluster.testing.history import Run

NEVER = math.inf
KILLED = -9
ASKED_OF_MACHINES = frozenset({"inventory", "fence", "start", "submissions", "stop", "forget", "output", "discard"}) | {
    "ended_elsewhere",
    "others",
}


@dataclass(frozen=True)
class Script:
    """What a program does. By default it starts at once, runs for a minute, succeeds, and obeys a soft stop at once.

    Attributes:
        runs_s: seconds from its start to its end; NEVER: it runs until it is stopped.
        starts_after_s: seconds from the launch to its start; NEVER: it stays pending.
        stops_after_s: seconds from a soft stop to its end; NEVER: it ignores soft stops.
        stopped_exit_code: exit code after a soft stop.
        output: text that it writes at its start.
        refused: why the launch is refused; None: it is accepted.
    """

    runs_s: float = 60.0
    exit_code: int = 0
    starts_after_s: float = 0.0
    stops_after_s: float = 0.0
    stopped_exit_code: int = 130
    output: bytes = b""
    message: str = ""
    refused: str | None = None


class FakeClock:
    """Returns the time in seconds when it is called. It stands still until `advance`, or runs at a given rate."""

    def __init__(self, now_s: float = 0.0, rate: float = 0.0) -> None:
        """`rate`: seconds of this clock in one real second."""
        self._now_s, self._rate, self._began_s = now_s, rate, time.monotonic()

    def __call__(self) -> float:
        return self._now_s + (time.monotonic() - self._began_s) * self._rate

    now_s = steady_s = __call__  # as the queue's `Clock` calls it

    def advance(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"time does not go back: {seconds} s")
        self._now_s += seconds


def nodes(*names: str, cpus: int = 64, gpus: int = 8, accelerator_type: str | None = "H100") -> Inventory:
    """Make an inventory of equal nodes. Nodes without GPUs have no accelerator type."""
    return Inventory(tuple(Node(name, cpus, gpus, accelerator_type if gpus else None) for name in names))


def gpus_of(launch: Launch) -> Mapping[str, int]:
    """Return the GPUs that a program holds on each node, from its metadata, such as `gpus`: "n1=4 n2=4"."""
    pairs = (pair.partition("=") for pair in launch.metadata.get("gpus", "").split())
    return {node: int(gpus) for node, _, gpus in pairs}


@dataclass
class _Program:
    """A program. Its end is determined at its start, and later events may change it."""

    launch: Launch
    fence: int
    script: Script
    starts_s: float
    ends_s: float
    end: Phase
    exit_code: int | None
    message: str
    gpus: Mapping[str, int]
    listed: bool = True

    def phase(self, now_s: float) -> Phase:
        if now_s >= self.ends_s:
            return self.end
        return Phase.RUNNING if now_s >= self.starts_s else Phase.PENDING

    def end_at(self, at_s: float, end: Phase, exit_code: int | None, message: str = "") -> None:
        """End the program at `at_s`, unless it ends earlier. A program that has not started by then never starts."""
        if at_s <= self.ends_s:
            self.ends_s, self.end, self.exit_code, self.message = at_s, end, exit_code, message
            self.starts_s = self.starts_s if self.starts_s <= at_s else NEVER


class FakeCluster:
    """A fake cluster. Thread-safe. All calls go through `ask`, which can simulate machines that do not answer."""

    def __init__(self, inventory: Inventory | None = None, clock: FakeClock | None = None) -> None:
        """`inventory`: None makes one node, n1, with 8 GPUs."""
        self.clock = clock or FakeClock()
        given = inventory or nodes("n1")
        self._nodes, self._growth = {node.node_id: node for node in given.nodes}, given.growth
        self._programs: dict[str, _Program] = {}
        self._scripts: list[Callable[[Launch], Script | None]] = []
        self._elsewhere: dict[str, bool] = {}  # program -> whether it has ended
        self._fence: int | None = None
        self._answers, self._hears = True, True
        self._lock = threading.RLock()

    def ask(self, call: str, *arguments: Any) -> Any:
        """Call one of the methods below by its name.

        Raises:
            BackendUnreachable: a test has made the machines unreachable. If only answers are lost, the call was made.
        """
        with self._lock:
            asks_machines = call in ASKED_OF_MACHINES
            if asks_machines and not self._hears:
                raise BackendUnreachable("the fake cluster is unreachable")
            answer = getattr(self, call)(*arguments)
            if asks_machines and not self._answers:
                raise BackendUnreachable("the answer of the fake cluster was lost")
            return answer

    def inventory(self) -> Inventory:
        return Inventory(tuple(self._nodes.values()), self._growth)

    def fence(self, fence: int) -> None:
        check_fence(fence, self._fence)
        self._fence = fence

    def ended_elsewhere(self, programs: Sequence[str]) -> list[str]:
        return sorted(name for name in programs if self._elsewhere.get(name))

    def others(self) -> list[str]:
        return [name for name, ended in self._elsewhere.items() if not ended]

    def run_elsewhere(self, program: str) -> None:
        self._elsewhere[program] = False

    def end_elsewhere(self, program: str) -> None:
        self._elsewhere[program] = True

    def start(self, launch: Launch, fence: int) -> None:
        self.fence(fence)
        if launch.submission in self._programs:
            return
        check_launch(launch)
        script = self._script_of(launch)
        if script.refused is not None:
            raise LaunchRefused(script.refused)
        starts_s = self.clock() + script.starts_after_s
        end = Phase.FAILED if script.exit_code else Phase.SUCCEEDED
        self._programs[launch.submission] = _Program(
            launch, fence, script, starts_s, starts_s + script.runs_s, end, script.exit_code, script.message,
            gpus_of(launch),
        )  # fmt: skip

    def submissions(self) -> Sequence[Submission]:
        now_s = self.clock()
        return [self._submission(program, now_s) for program in self._programs.values() if program.listed]

    def stop(self, submission: str, hard: bool) -> None:
        program, now_s = self._programs.get(submission), self.clock()
        if program is None or now_s >= program.ends_s:
            return
        if program.phase(now_s) is Phase.PENDING:
            program.end_at(now_s, Phase.STOPPED, None)
        elif hard:
            program.end_at(now_s, Phase.STOPPED, KILLED)
        elif program.end is not Phase.STOPPED:  # the first soft stop
            program.end = Phase.STOPPED  # also if it ends by itself before it reacts
            program.end_at(now_s + program.script.stops_after_s, Phase.STOPPED, program.script.stopped_exit_code)

    def forget(self, submissions: Sequence[str]) -> None:
        for program in self._ended(submissions):
            program.listed = False

    def discard(self, submissions: Sequence[str]) -> None:
        for program in self._ended(submissions):
            self._programs.pop(program.launch.submission, None)

    def output(self, submission: str, after: int) -> bytes:
        program = self._programs.get(submission)
        if program is None or program.starts_s > self.clock():
            return b""
        return program.script.output[after : after + MAX_OUTPUT_BYTES]

    def output_end(self, submission: str, most: int) -> tuple[int, bytes]:
        begin = max(len(self.output(submission, 0)) - most, 0)
        return begin, self.output(submission, begin)

    # The methods below are for tests. They work even while the machines are unreachable.

    def add_script(self, pattern: str, script: Script) -> None:
        self.add_rule(lambda launch: script if fnmatch.fnmatchcase(launch.submission, pattern) else None)

    def add_rule(self, rule: Callable[[Launch], Script | None]) -> None:
        """Add a rule for programs that are started from now on. The newest rule that returns a script counts."""
        self._scripts.insert(0, rule)

    def lose_node(self, node_id: str) -> None:
        del self._nodes[node_id]
        now_s = self.clock()
        for program in self._programs.values():
            if node_id in program.gpus and now_s < program.ends_s:
                program.end_at(now_s, Phase.LOST, None, f"node {node_id} is gone")

    def forget_node(self, node_id: str) -> None:
        """Remove a node from the list. Its programs go on."""
        del self._nodes[node_id]

    def put_node(self, node: Node) -> None:
        self._nodes[node.node_id] = node

    def change_node(self, node_id: str, changes: Mapping[str, Any]) -> None:
        self._nodes[node_id] = replace(self._nodes[node_id], **changes)

    def lose(self, submission: str) -> None:
        self._programs[submission].end_at(self.clock(), Phase.LOST, None, "lost, because the test wants it")

    def reach(self, hears: bool, answers: bool) -> None:
        self._hears, self._answers = hears, answers

    def now(self) -> float:
        return self.clock()

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def history(self) -> tuple[Run, ...]:
        """Return all programs that have run, including forgotten ones."""
        now_s = self.clock()
        return tuple(self._run(program, now_s) for program in self._programs.values() if program.starts_s <= now_s)

    def _ended(self, submissions: Sequence[str]) -> list[_Program]:
        known = [self._programs[name] for name in submissions if name in self._programs]
        return [program for program in known if self.clock() >= program.ends_s]

    def _script_of(self, launch: Launch) -> Script:
        return next((script for rule in self._scripts if (script := rule(launch)) is not None), Script())

    def _submission(self, program: _Program, now_s: float) -> Submission:
        name, phase = program.launch.submission, program.phase(now_s)
        if now_s < program.ends_s:
            return Submission(name, phase)
        return Submission(name, phase, program.exit_code, program.message)

    def _run(self, program: _Program, now_s: float) -> Run:
        ended_s = program.ends_s if program.ends_s <= now_s else None
        return Run(
            program.launch.submission, program.fence, program.starts_s, ended_s, program.phase(now_s), program.gpus
        )
