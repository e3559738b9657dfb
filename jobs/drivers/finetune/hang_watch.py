"""Watches a worker group for a rank that stops responding, and kills that rank.

The driver then starts lost workers again, as after any death (`lost_workers`). A lack of new steps in the
run's files only causes a question to the nodes: their answers decide (`jobs.remedies.hang`), because the storage may be
late while training goes on. Runs under torchrun and trials of a sweep have no such watch.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.ray.connection import snapshot
from cluster.ray.node_tasks import ask_nodes
from jobs.remedies.hang import Doing, Hang, Observations, hang_of, limit_s
from jobs.run.checkpoints import newest_step_if_known
from jobs.run.events import Announcer
from jobs.run.remedies import RemedyReport
from jobs.storage.journal import Record, interval_s
from jobs.training.on_ray.crash import Crash, How
from jobs.training.rank_states import end_ranks, rank_states
from jobs.training.worker_input import Job

REMEDY = "hang"  # as in `jobs.spec.remedies`
_LEAST_STEPS = 2  # steps of a group before it is watched, because its first step may take any time
_PAUSED_S = 5.0  # with more time between two looks, this process was paused too, and a lack of steps proves nothing
_APART_S = (2.0, 10.0)  # least and most seconds between the two observations of a rank
_END_WITHIN_S = 10.0  # for a node to kill a rank
_WORDS = {
    Doing.STEP: "in",
    Doing.EVALUATION: "in the evaluation after",
    Doing.GENERAL: "in the evaluation of general text after",
    Doing.DATA: "in the wait for rows after",
    Doing.OTHER: "after",
}
_FAULTY_AFTER = 2  # hangs of ranks on one node
_BLOCKED = "D"  # a process in a system call that no signal ends


class HangWatch:
    """Watches the worker groups of one driver. Call `begin` before each group starts, and `look` while it runs."""

    def __init__(
        self, announce: Announcer, places: Sequence[str] | None, ask: Callable[..., dict[str, Any]] = ask_nodes
    ) -> None:
        """`places`: ids of the nodes that a queue has assigned; None: any node may run workers."""
        self._announce, self._places, self._ask = announce, places, ask
        self._group: _Group | None = None
        self._hung_at_s: float | None = None  # until training goes on
        self._hangs: Counter[str] = Counter()  # by node, over all groups

    def begin(self, job: Job, newest: Record | None) -> None:
        """Watch a new group. `newest`: the last step of earlier groups."""
        self._group = _Group(job, newest)

    def look(self, newest: Record | None) -> None:
        """Look at the time since the last step. Returns at once: a thread asks the nodes."""
        group = self._group
        if group is None or not group.job.spec.remedies.hang:
            return
        if group.sees(newest) and self._hung_at_s is not None:
            self._went_on(time.monotonic() - self._hung_at_s)
        if group.is_due():
            group.asking = threading.Thread(target=self._examine, args=(group,), name="hang", daemon=True)
            group.asking.start()

    def leave(self) -> None:
        """Stop watching the group, which has ended. Waits for the thread, because it uses the connection to Ray."""
        group = self._group
        if group is not None and group.asking is not None:
            group.left.set()
            group.asking.join(_END_WITHIN_S)

    @property
    def has_ended_the_workers(self) -> bool:
        """Whether the group ended because this watch killed a rank that hung."""
        return self._group is not None and self._group.hang is not None

    def named(self, crash: Crash | None) -> Crash | None:
        """Return the crash of the group with its cause, if a rank of the group was killed because it hung."""
        hang = self._group.hang if self._group is not None else None
        if hang is None or crash is None:
            return crash
        return replace(crash, how=How.DIED, what=f"{_did(hang)}, and was killed", **_who(hang))

    def _examine(self, group: _Group) -> None:
        try:
            nodes = self._places or [node.node_id for node in snapshot().nodes]
            key = group.job.driver
            answers = self._ask(nodes, rank_states, key, group.apart_s, wanted=lambda: not group.left.is_set())
            observed = {observed: node for node, answer in answers.items() for observed in answer}
            hang = hang_of(list(observed), group.job.spec.resources.num_workers)
            if hang is not None and not group.left.is_set():
                self._end(group, hang, observed)
                if hang.is_to_blame:
                    self._count(next(node for one, node in observed.items() if one.second is hang.rank), hang)
        except Exception:  # Ray has been left meanwhile; without an answer nothing is killed
            traceback.print_exc()
        finally:
            group.answered()

    def _end(self, group: _Group, hang: Hang, observed: Mapping[Observations, str]) -> None:
        group.hang, self._hung_at_s = hang, time.monotonic()
        rank, cause = hang.rank, _cause(hang)
        saved = newest_step_if_known(group.job.paths)
        report = RemedyReport(
            REMEDY,
            cause,
            f"rank {rank.pulse.rank} is killed (pid {rank.pulse.pid})",
            f"the workers start again from step {saved}",
            f"look at host {rank.host}, and at the stacks in the log of rank {rank.pulse.rank}",
            max(rank.pulse.step - saved, 0),
        )
        report.tell(self._announce, **_data(hang))
        head = f"\nNo rank has made progress for {rank.age_s:.1f} s. The threads of this rank:\n"
        # SIGKILL reaches a blocked process only when its call returns. The end of any other rank ends the group.
        blocked = rank.state == _BLOCKED
        asking = []
        for node in dict.fromkeys(
            observed.values()
        ):  # each about its own ranks, because processes of different machines have equal ids
            here = [one.second for one, place in observed.items() if place == node]
            stacks = {one.pulse.pid: head + one.stack for one in here if one.stack}
            victims = {one.pulse.pid for one in here if blocked or one is rank}
            given = ([node], end_ranks, group.job.driver, stacks, victims)
            asking.append(threading.Thread(target=self._tell, args=given, name=f"end-{node}", daemon=True))
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()

    def _tell(self, *given: Any) -> None:
        self._ask(*given, timeout_s=_END_WITHIN_S)

    def _count(self, node: str, hang: Hang) -> None:
        """Name a node on which ranks hang again and again. `ProgressReporter` passes it on to a queue."""
        self._hangs[node] += 1
        if self._hangs[node] == _FAULTY_AFTER:
            said = f"ranks on host {hang.rank.host} have hung {_FAULTY_AFTER} times in this run. Look at that machine"
            more = ": the queue is told" if self._places is not None else ""
            self._announce("faulty", said + more, nodes=[node], host=hang.rank.host)

    def _went_on(self, seconds: float) -> None:
        self._hung_at_s = None
        effect = f"training goes on {seconds:.1f} s after the hang was found"
        self._announce.record("remedy", effect, remedy=REMEDY, effect=effect, seconds=round(seconds, 1))


class _Group:
    """The time since the last step of one worker group, as the driver sees it."""

    def __init__(self, job: Job, newest: Record | None) -> None:
        self.job = job
        self.hang: Hang | None = None
        self.asking: threading.Thread | None = None
        self.left = threading.Event()
        self._newest, self._steps, self._longest_s = newest, 0, 0.0
        self._began_s = self._looked_s = self._quiet_since_s = time.monotonic()
        self._ask_after_s = 0.0  # seconds of silence before the nodes are asked again

    @property
    def apart_s(self) -> float:
        """Seconds between two observations. A healthy rank that was only paused makes a step in this time."""
        return min(max(self._longest_s, _APART_S[0]), _APART_S[1])

    def sees(self, newest: Record | None) -> bool:
        """Record the newest step, and return whether it is new."""
        now = time.monotonic()
        paused, self._looked_s = now - self._looked_s > _PAUSED_S, now
        new = newest is not None and newest is not self._newest
        if newest is not None and new:
            # Several short steps may pass between two looks. A group that continues from a checkpoint may begin below
            # the newest step.
            passed = int(newest["step"]) - (0 if self._newest is None else int(self._newest["step"]))
            self._newest, self._steps = newest, self._steps + max(passed, 1)
            if self._steps > 1:
                self._longest_s = max(self._longest_s, float(newest["step_time_s"]))
        if new or paused:
            self._quiet_since_s, self._ask_after_s = now, 0.0
        return new

    def is_due(self) -> bool:
        """Whether it is time to ask the nodes. An old run writes its journal seldom, so its steps come late."""
        if self._steps < _LEAST_STEPS or (self.asking is not None and self.asking.is_alive()):
            return False
        now = time.monotonic()
        usual_s = limit_s(self._longest_s) + interval_s(now - self._began_s) - interval_s(0.0)
        return now - self._quiet_since_s > max(usual_s, self._ask_after_s)

    def answered(self) -> None:
        """Wait longer before each further question, because a long evaluation writes no steps either."""
        self._ask_after_s = 1.5 * (time.monotonic() - self._quiet_since_s)


def _did(hang: Hang) -> str:
    rank = hang.rank
    pulse = rank.pulse
    at = f"{_WORDS[pulse.doing]} step {pulse.step}"
    longest = f", where the longest one before took {pulse.longest_s:.1f} s" if pulse.longest_s is not None else ""
    return f"made no progress for {rank.age_s:.1f} s {at}{longest}: it {hang.why} (state {rank.state})"


def _cause(hang: Hang) -> str:
    rank = hang.rank
    # A signal stops a process anywhere, so the place says nothing about the cause.
    where = f" in {rank.frames[0]}" if rank.frames and not rank.is_stopped else ""
    return f"rank {rank.pulse.rank} on host {rank.host} {_did(hang)}{where}"


def _who(hang: Hang) -> dict[str, Any]:
    return {"rank": hang.rank.pulse.rank, "pid": hang.rank.pulse.pid, "host": hang.rank.host}


def _data(hang: Hang) -> dict[str, Any]:
    rank = hang.rank
    return {
        "state": rank.state, "stack": list(rank.frames),
        "doing": rank.pulse.doing, "step": rank.pulse.step, "quiet_s": round(rank.age_s, 1), **_who(hang),
    }  # fmt: skip
