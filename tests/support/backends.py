"""The backends under one roof, for the contract tests: how to open them, what to start there, and how to break them."""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from cluster.backend import Backend, Launch, Submission
from cluster.local.backend import LocalBackend
from cluster.ray.backend import RayJobsBackend
from cluster.testing import FakeBackend, FakeClock, FakeCluster, ServedCluster, nodes, served
from cluster.testing.fake_cluster import NEVER
from tests.support.gangs import ROOT
from tests.support.processes import free_port, pause, processes_with, wait_for
from tests.support.raycluster import RayHead

# A caller that can be killed: it says which name comes next, and starts it.
STARTER = """
import json, sys
from cluster.backend import Launch
from cluster.local.backend import LocalBackend
from cluster.ray.backend import RayJobsBackend
from cluster.testing import FakeBackend, ServedCluster
backend = {opened}
backend.submissions()
print("open", flush=True)
fence = int(sys.stdin.readline())
for line in sys.stdin:
    given = json.loads(line)
    print(given["submission"], flush=True)
    backend.start(Launch(**given), fence)
print("done", flush=True)
"""
_FENCES = itertools.count(10, 10)  # Ray's cluster is one for many tests, and its fence only rises


@dataclass(frozen=True)
class Program:
    """What a program of a test does, on whatever backend.

    Attributes:
        forever: until it is ended; otherwise it ends at once.
        escapes: it leaves a process behind in a session of its own.
    """

    exit_code: int = 0
    forever: bool = False
    listens: bool = True
    escapes: bool = False
    output: bytes = b""

    def command(self, traces: pathlib.Path, name: str) -> tuple[str, ...]:
        """As a shell script. It leaves a line in `traces` for every time that it is started."""
        lines = [] if self.listens else ["trap '' TERM"]
        lines += [f"echo {name} >> '{traces / 'starts'}'"]
        lines += [f"(setsid sleep 1000 & echo $! > '{traces / name}.escaped')"] if self.escapes else []
        lines += ["printf '" + "".join(f"\\{byte:03o}" for byte in self.output) + "'"] if self.output else []
        lines += ["exec sleep 1000" if self.forever else f"exit {self.exit_code}"]
        return ("sh", "-c", "\n".join(lines))


class World(Protocol):
    """What differs between the backends."""

    within_s: float  # how long something may take

    def open(self) -> Backend: ...

    def opened(self) -> str:
        """The same as Python code, for another process."""

    def unreachable(self) -> contextlib.AbstractContextManager[Backend]: ...

    def prepare(self, name: str, program: Program) -> None: ...

    def refuse(self, name: str) -> None:
        """There is no such program; where a name alone does not say it."""

    def pass_time(self) -> None: ...

    def starts(self, name: str) -> int | None:
        """How often it has run; None: the programs' own traces say it."""


@dataclass
class FakeWorld:
    backend: FakeBackend
    socket: pathlib.Path | None = None
    within_s: float = 60.0

    def open(self) -> Backend:
        return FakeBackend(ServedCluster(self.socket)) if self.socket else self.backend

    def opened(self) -> str:
        return f"FakeBackend(ServedCluster({str(self.socket)!r}))"

    def unreachable(self) -> contextlib.AbstractContextManager[Backend]:
        return self._unreachable()

    @contextlib.contextmanager
    def _unreachable(self) -> Iterator[Backend]:
        with self.backend.unreachable():
            yield self.backend

    def prepare(self, name: str, program: Program) -> None:
        self.backend.script(
            name,
            runs_s=NEVER if program.forever else 1.0,
            exit_code=program.exit_code,
            stops_after_s=0.0 if program.listens else NEVER,
            output=program.output,
        )

    def refuse(self, name: str) -> None:
        self.backend.refuse(name)

    def pass_time(self) -> None:
        self.backend.advance(1.0)

    def starts(self, name: str) -> int | None:
        return len([run for run in self.backend.history() if run.submission == name])


@dataclass
class LocalWorld:
    folder: pathlib.Path
    within_s: float = 60.0

    def open(self) -> Backend:
        return LocalBackend(self.folder)

    def opened(self) -> str:
        return f"LocalBackend({str(self.folder)!r})"

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[Backend]:
        backend, away = self.open(), self.folder.with_name("away")
        self.folder.rename(away)
        try:
            yield backend
        finally:
            away.rename(self.folder)

    def prepare(self, name: str, program: Program) -> None:
        pass

    def refuse(self, name: str) -> None:
        pass

    def pass_time(self) -> None:
        pause()

    def starts(self, name: str) -> int | None:
        return None


@dataclass
class RayWorld(LocalWorld):
    head: RayHead | None = None
    within_s: float = 240.0

    def open(self) -> Backend:
        assert self.head is not None
        return RayJobsBackend(self.head.dashboard, token=self.head.token)

    def opened(self) -> str:
        assert self.head is not None
        return f"RayJobsBackend({self.head.dashboard!r}, token={self.head.token!r})"

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[Backend]:
        yield RayJobsBackend(f"http://127.0.0.1:{free_port()}")


@dataclass
class Machines:
    """One backend in the hands of one test."""

    kind: str
    world: World
    traces: pathlib.Path
    prefix: str = field(default_factory=lambda: f"t{secrets.token_hex(3)}-")
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    fence: int = field(default_factory=lambda: next(_FENCES))

    def __post_init__(self) -> None:
        self.backend = self.world.open()

    def launch(self, name: str, program: Program = Program()) -> Launch:
        """A launch that this backend understands, under a name that no other test uses."""
        full = self.prefix + name
        self.world.prepare(full, program)
        return self.command(name, *program.command(self.traces, full))

    def command(self, name: str, *command: str, **environment: str) -> Launch:
        """A launch of a real command."""
        return Launch(self.prefix + name, command, {"FLEETUNE_TEST": self.mark, **environment})

    def state(self, launch: Launch) -> Submission | None:
        return next((one for one in self.backend.submissions() if one.submission == launch.submission), None)

    def started(self, launch: Launch) -> Launch:
        """Start it, and wait until its program has come up."""
        self.backend.start(launch, self.fence)
        self.wait_for(lambda: self.starts(launch) > 0, f"{launch.submission} has come up")
        return launch

    def ended(self, launch: Launch) -> Submission:
        self.wait_for(lambda: (state := self.state(launch)) and state.ended, f"{launch.submission} has ended")
        state = self.state(launch)
        assert state is not None
        return state

    def wait_for(self, true: Callable[[], object], what: str) -> None:
        wait_for(true, what, self.world.within_s, self.world.pass_time)

    def starts(self, launch: Launch) -> int:
        known = self.world.starts(launch.submission)
        if known is not None:
            return known
        file = self.traces / "starts"
        return file.read_text().splitlines().count(launch.submission) if file.exists() else 0

    def escaped(self, launch: Launch) -> int:
        """The process that the program left behind."""
        file = self.traces / f"{launch.submission}.escaped"
        self.wait_for(lambda: file.exists() and file.read_text().strip(), "it has left a process behind")
        return int(file.read_text())

    def starter(self, launches: Sequence[Launch], fence: int | None = None) -> Starter:
        return Starter(self.world.opened(), launches, self.fence if fence is None else fence)

    def clean_up(self) -> None:
        """End what runs; nothing may be left."""
        ours = [one for one in self.backend.submissions() if one.submission.startswith(self.prefix)]
        for one in ours:
            self.backend.stop(one.submission, hard=True)
        for one in ours:
            self.ended(Launch(one.submission, ()))
        self.wait_for(lambda: not processes_with(f"FLEETUNE_TEST={self.mark}"), "all processes have ended")


class Starter:
    """A process that starts programs, and can be killed."""

    def __init__(self, opened: str, launches: Sequence[Launch], fence: int) -> None:
        code = STARTER.format(opened=opened)
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdout is not None and self.process.stdin is not None
        self._out, self._in = self.process.stdout, self.process.stdin
        self._given = "\n".join([str(fence), *(json.dumps(_plain(launch)) for launch in launches)])
        assert self._out.readline() == "open\n"

    def go(self) -> None:
        """From here on it starts them."""
        self._in.write(self._given + "\n")
        self._in.close()

    def reaches(self, launch: Launch) -> None:
        """Wait until it is about to start this one."""
        assert any(line == launch.submission + "\n" for line in self._out)

    def kill(self) -> None:
        self.process.kill()
        self._close()

    def is_done(self) -> bool:
        """Wait for its end: whether it has started all."""
        done = self._out.read().endswith("done\n")
        self._close()
        return done

    def _close(self) -> None:
        self.process.wait()
        self._out.close()
        self._in.close()


@contextlib.contextmanager
def machines(kind: str, folder: pathlib.Path, head: RayHead | None) -> Iterator[Machines]:
    """A backend of a kind ("fake", "served", "local" or "ray"); at the end nothing of it may be left running."""
    with contextlib.ExitStack() as stack:
        world: World
        if kind == "fake":
            world = FakeWorld(FakeBackend(FakeCluster(nodes("n1", "n2"), FakeClock())))
        elif kind == "served":
            world = FakeWorld(stack.enter_context(served(folder, "--nodes", "2")), folder / "cluster")
        else:
            world = LocalWorld(folder / "local") if kind == "local" else RayWorld(folder / "ray", head=head)
        made = Machines(kind, world, folder)
        yield made
        made.clean_up()


def _plain(launch: Launch) -> dict[str, object]:
    return {
        "submission": launch.submission,
        "command": launch.command,
        "environment": dict(launch.environment),
        "working_dir": launch.working_dir,
        "metadata": dict(launch.metadata),
    }
