"""`FakeBackend`: a backend with fake machines, and methods with which tests cause failures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

from cluster.backend import Launch, Submission
from cluster.capacity.inventory import Inventory, Node
from cluster.testing.fake_cluster import NEVER, FakeCluster, Script
from cluster.testing.history import Run


class Asked(Protocol):
    """A fake cluster, in this process or in another one."""

    def ask(self, call: str, *arguments: Any) -> Any: ...


class FakeBackend:
    """See `cluster.backend.Backend`. Each backend on a cluster is a separate caller."""

    def __init__(self, cluster: Asked | None = None) -> None:
        """`cluster`: None makes a new cluster with one node."""
        self._cluster = cluster or FakeCluster()

    def inventory(self) -> Inventory:
        return cast(Inventory, self._cluster.ask("inventory"))

    def fence(self, fence: int) -> None:
        self._cluster.ask("fence", fence)

    def start(self, launch: Launch, fence: int) -> None:
        self._cluster.ask("start", launch, fence)

    def submissions(self) -> Sequence[Submission]:
        return cast(Sequence[Submission], self._cluster.ask("submissions"))

    def stop(self, submission: str, *, hard: bool = False) -> None:
        self._cluster.ask("stop", submission, hard)

    def forget(self, submissions: Sequence[str]) -> None:
        self._cluster.ask("forget", tuple(submissions))

    def discard(self, submissions: Sequence[str]) -> None:
        self._cluster.ask("discard", tuple(submissions))

    def output(self, submission: str, after: int = 0) -> bytes:
        return cast(bytes, self._cluster.ask("output", submission, after))

    def output_end(self, submission: str, most: int) -> tuple[int, bytes]:
        return cast(tuple[int, bytes], self._cluster.ask("output_end", submission, most))

    def ended_elsewhere(self, programs: Sequence[str]) -> frozenset[str]:
        return frozenset(self._cluster.ask("ended_elsewhere", tuple(programs)))

    def others(self) -> Sequence[str]:
        return list(self._cluster.ask("others"))

    # Scripts determine what programs do. A script applies to programs that are started later; newer ones go first.

    def script(self, pattern: str, **what: Any) -> None:
        """Set fields of `Script` for submissions whose name matches a shell pattern, such as `tuning-*`."""
        self._cluster.ask("add_script", pattern, Script(**what))

    def script_by(self, rule: Callable[[Launch], Script | None]) -> None:
        """Add a rule that returns the script for a launch, or None. Not for a cluster in another process."""
        self._cluster.ask("add_rule", rule)

    def fail(self, pattern: str, exit_code: int = 1, after_s: float = 1.0) -> None:
        self.script(pattern, exit_code=exit_code, runs_s=after_s)

    def never_start(self, pattern: str) -> None:
        self.script(pattern, starts_after_s=NEVER)

    def ignore_soft_stop(self, pattern: str) -> None:
        self.script(pattern, stops_after_s=NEVER)

    def refuse(self, pattern: str, why: str = "there is no such program") -> None:
        self.script(pattern, refused=why)

    # Events on the cluster.

    def lose_node(self, node_id: str) -> None:
        """Remove a node. Programs that hold GPUs of it are LOST."""
        self._cluster.ask("lose_node", node_id)

    def add_node(self, node_id: str, cpus: int = 64, gpus: int = 8, accelerator_type: str | None = "H100") -> None:
        self._cluster.ask("put_node", Node(node_id, cpus, gpus, accelerator_type if gpus else None))

    def change_node(self, node_id: str, **changes: Any) -> None:
        """Change fields of a `Node`, such as `usable=False` or `foreign_gpus=2`."""
        self._cluster.ask("change_node", node_id, changes)

    def lose(self, submission: str) -> None:
        """Make a program LOST now, regardless of its script."""
        self._cluster.ask("lose", submission)

    def run_elsewhere(self, program: str) -> None:
        """Add a running program that another user has started."""
        self._cluster.ask("run_elsewhere", program)

    def end_elsewhere(self, program: str) -> None:
        """End a program that another user has started."""
        self._cluster.ask("end_elsewhere", program)

    def unreachable(self) -> AbstractContextManager[None]:
        """In the context, requests do not reach the machines. Programs go on."""
        return self._unanswered(hears=False)

    def answers_lost(self) -> AbstractContextManager[None]:
        """In the context, the machines carry out requests, but their answers are lost."""
        return self._unanswered(hears=True)

    def now(self) -> float:
        """Return the time of the cluster's clock."""
        return cast(float, self._cluster.ask("now"))

    def advance(self, seconds: float) -> None:
        self._cluster.ask("advance", seconds)

    def history(self) -> tuple[Run, ...]:
        """Return all programs that have ever run, including forgotten ones."""
        return cast(tuple[Run, ...], self._cluster.ask("history"))

    @contextlib.contextmanager
    def _unanswered(self, hears: bool) -> Iterator[None]:
        self._cluster.ask("reach", hears, False)
        try:
            yield
        finally:
            self._cluster.ask("reach", True, True)
