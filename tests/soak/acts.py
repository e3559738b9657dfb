"""What a plan says, done to the world; and undone when its time has come."""

from __future__ import annotations

import heapq
import itertools
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import httpx

from orchestrator.queue.states import ENDED
from tests.soak.checks import Cut, Fate, Seen
from tests.soak.plan import HARD, Act, Kind, Work
from tests.soak.world import NODE_WITHIN_S, Node, Unreachable, World, send, shown
from tests.support import tiny
from tests.support.gangs import ROOT

SAVE_STEPS = 20
HELD_AT = 3 * SAVE_STEPS  # the step of held trainings
PATIENT = frozenset({Kind.DRIVER_KILL, Kind.WORKER_KILL})
CUT_LASTS_S = 60.0  # after a link is up again, until Ray has ended what it gave up meanwhile
_GIVES_UP_S = 12.0  # a link that was down for less has taken nothing away
_TRIED_AGAIN_S = 1.0

Thing = TypeVar("Thing")


@dataclass
class Doing:
    """What was done, and what is still to be undone.

    Attributes:
        jobs: ids by the order of submission.
        done, missed: acts by kind; missed: nothing was there to do it to.
        since: of the beginning (monotonic).
    """

    world: World
    since: float
    fates: dict[str, Fate] = field(default_factory=dict)
    works: dict[str, Work] = field(default_factory=dict)
    seen: dict[str, Seen] = field(default_factory=dict)
    done: Counter[Kind] = field(default_factory=Counter)
    missed: Counter[Kind] = field(default_factory=Counter)
    cuts: list[Cut] = field(default_factory=list)
    cordoned: int = 0  # nodes, by the queue itself
    refused: int = 0  # submissions, while too few nodes were there to ever hold them
    wrong: list[str] = field(default_factory=list)  # answers that should not be
    _later: list[tuple[float, int, Callable[[], bool]]] = field(default_factory=list)
    _numbers: Any = field(default_factory=itertools.count)

    @property
    def hard(self) -> bool:
        return any(self.done[kind] for kind in HARD)

    def act(self, act: Act) -> None:
        if act.kind is Kind.SUBMIT:
            self._again(lambda: self._submit(act))
            return
        self._again(lambda: self._happens(act))

    def _happens(self, act: Act) -> bool:
        """False: it is tried again. There may be nobody to kill now, but jobs that will run."""
        try:
            happened = getattr(self, f"_{act.kind.name.lower()}")(act)
        except Unreachable:
            happened = False
        if not happened and act.kind in PATIENT and self._job(act) is not None:
            return False
        (self.done if happened else self.missed)[act.kind] += 1
        self.say(f"{act}" + ("" if happened else "   nothing there to do it to"))
        return True

    def undo(self) -> None:
        """Whatever is due; what does not succeed is tried again soon."""
        while self._later and self._later[0][0] <= time.monotonic():
            _, _, what = heapq.heappop(self._later)
            self._again(what)

    def nothing_to_undo(self) -> bool:
        return not self._later

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.since:6.1f} s] {text}", file=sys.stderr, flush=True)

    def keep_nodes(self) -> None:
        """A node that has gone by itself, as after a link was down for long, is started again."""
        for node in self.world.nodes:
            if node.away or node.down:
                continue
            ended = node.process is None or node.process.poll() is not None
            if ended or (time.monotonic() - node.since > NODE_WITHIN_S and not self._is_alive(node)):
                self.say(f"{node.name} is started again")
                self._node_is_up(node)

    def use_cordoned(self) -> None:
        """What the queue itself has taken away: by the soak's own faults."""
        for view in self.world.api("GET", "/v1/nodes")["nodes"]:
            if view["order"] != "use" and view["by"] == "fleetune":
                self.cordoned += 1
                self.say(f"the queue has cordoned {view['name']}: {view['reason']}")
                self._order(view["name"], "use")

    def _again(self, what: Callable[[], bool]) -> None:
        try:
            if what():
                return
        except Unreachable:
            pass
        self._at(_TRIED_AGAIN_S, what)

    def _at(self, in_s: float, what: Callable[[], bool]) -> None:
        heapq.heappush(self._later, (time.monotonic() + in_s, next(self._numbers), what))

    # Jobs.

    def _submit(self, act: Act) -> bool:
        work = act.work
        assert work is not None
        body = {"specs": [self._spec(work)], "key": work.name}
        try:
            (job,) = self.world.api("POST", "/v1/jobs", body)["jobs"]
        except httpx.HTTPStatusError as error:
            told = shown(error.response)
            if error.response.status_code != 400 or ("the most that would fit" not in told and "fits" not in told):
                self.wrong.append(f"submission of {work.name}: {error.response.status_code} {told}")
                return True
            self.refused += 1
            return False  # nodes are gone just now
        self.fates[job["job_id"]] = Fate(job["job_id"], None if work.training else work.num_workers, work.exit_code)
        self.works[job["job_id"]] = work
        self.done[act.kind] += 1
        self.say(f"{act}   {job['job_id']}")
        return True

    def _spec(self, work: Work) -> dict[str, Any]:
        folder = self.world.folder
        queue = {"priority": work.priority, "preemptible": work.preemptible}
        if work.training:
            spec = tiny.spec_of(
                folder / "runs", folder / "llama", folder / "text.jsonl", name=work.name, train__max_steps=work.steps,
                train__global_batch_size=4, train__per_device_train_batch_size=2, checkpoint__save_steps=SAVE_STEPS,
                queue=queue,
            )  # fmt: skip
            return dict(spec.model_dump(mode="json"))
        program = str(ROOT / "tests/soak/program.py")
        words = [sys.executable, program, str(folder / "journals"), str(work.runs_s), str(work.exit_code)]
        resources = {"num_workers": work.num_workers, "cpus_per_worker": 1}
        return {"kind": "command", "name": work.name, "command": words, "resources": resources, "queue": queue}

    def _cancel(self, act: Act) -> bool:
        job = self._job(act)
        if job is None or not self._ask(job, "cancel"):
            return False
        self.fates[job] = replace(self.fates[job], asked_to_cancel=True)
        return True

    def _pause(self, act: Act) -> bool:
        job = self._job(act)
        if job is None or not self._ask(job, "pause"):
            return False
        self._at(act.for_s, lambda: self._ask(job, "resume") or True)
        return True

    def _priority(self, act: Act) -> bool:
        job = self._job(act)
        return job is not None and self._ask(job, "priority", {"priority": act.value})

    def _job(self, act: Act) -> str | None:
        """One of those that have not ended."""
        return _one_of([job for job in self.fates if job not in self.seen or self.seen[job].state not in ENDED], act)

    def _ask(self, job: str, what: str, body: Any = None) -> bool:
        """False: it has ended meanwhile. Raises Unreachable."""
        try:
            self.world.api("PUT" if what == "priority" else "POST", f"/v1/jobs/{job}/{what}", body)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 409:
                self.wrong.append(f"{what} of {job}: {error.response.status_code} {shown(error.response)}")
            return False
        return True

    # The server, drivers, workers.

    def _server_kill(self, act: Act) -> bool:
        if self.world.server is None or self.world.frozen:
            return False
        self.world.kill_server()
        self._at(act.for_s, self._server_is_started)
        return True

    def _server_is_started(self) -> bool:
        self.world.start_server()
        return True

    def _server_freeze(self, act: Act) -> bool:
        server = self.world.server
        if server is None or self.world.frozen:
            return False
        self.world.freeze_server(True)
        self._at(act.for_s, self._server_is_thawed)
        return True

    def _server_is_thawed(self) -> bool:
        self.world.freeze_server(False)
        return True

    def _driver_kill(self, act: Act) -> bool:
        driver = _one_of(list(self.world.drivers()), act)
        return driver is not None and send([driver], signal.SIGKILL) == 1

    def _driver_freeze(self, act: Act) -> bool:
        driver = _one_of(list(self.world.drivers()), act)
        if driver is None or not send([driver], signal.SIGSTOP):
            return False
        self._at(act.for_s, lambda: send([driver], signal.SIGCONT) >= 0)
        return True

    def _worker_kill(self, act: Act) -> bool:
        worker = _one_of([pid for node in self.world.nodes for pid in self.world.workers(node)], act)
        return worker is not None and send([worker], signal.SIGKILL) == 1

    def _program_kill(self, act: Act) -> bool:
        programs = {pid: job for node in self.world.nodes for pid, job in self.world.programs(node).items()}
        program = _one_of(list(programs), act)
        if program is None or not send([program], signal.SIGKILL):
            return False
        job = programs[program]
        self.fates[job] = replace(self.fates[job], program_killed=True)
        return True

    # Nodes.

    def _node_kill(self, act: Act) -> bool:
        node = self._node(act)
        if node is None or not send(self.world.raylets(node), signal.SIGKILL):
            return False
        node.away = True
        self._at(act.for_s, lambda: self._node_is_up(node))
        return True

    def _drain(self, act: Act) -> bool:
        node = self._node(act)
        if node is None or not self._order(node.name, "drain"):
            return False
        self._at(act.for_s, lambda: self._order(node.name, "use"))
        return True

    def _ray_drain(self, act: Act) -> bool:
        node = self._node(act)
        node_id = self.world.living().get(node.name) if node is not None else None
        if node is None or node_id is None:
            return False
        self.world.drain_by_ray(node, node_id, act.for_s)
        node.away = True
        self._at(act.for_s + 8.0, lambda: self._node_is_up(node))
        return True

    def _link_down(self, act: Act) -> bool:
        node = self._node(act)
        if node is None:
            return False
        self.world.link(node, up=False)
        node.cut_at = time.monotonic()
        self._at(act.for_s, lambda: self._link_is_up(node))
        return True

    def _link_is_up(self, node: Node) -> bool:
        self.world.link(node, up=True)
        assert node.cut_at is not None
        now = time.monotonic()
        if now - node.cut_at > _GIVES_UP_S:
            self.cuts.append(Cut(node.name, node.cut_at, now + CUT_LASTS_S))
        node.since = now
        return True

    def _node(self, act: Act) -> Node | None:
        return _one_of([node for node in self.world.nodes if not node.away and not node.down], act)

    def _node_is_up(self, node: Node) -> bool:
        self.world.start_node(node)
        node.away = False
        return True

    def _is_alive(self, node: Node) -> bool:
        try:
            return node.name in self.world.living()
        except Unreachable:
            return True

    def _order(self, name: str, order: str) -> bool:
        """Raises Unreachable. False: the queue does not know the node now."""
        views = self.world.api("GET", "/v1/nodes")["nodes"]
        node_id = next((view["node_id"] for view in views if view["name"] == name or view["node_id"] == name), None)
        if node_id is None:
            return False
        try:
            self.world.api("PUT", f"/v1/nodes/{node_id}", {"order": order, "reason": "soak"})
        except httpx.HTTPStatusError as error:
            if error.response.status_code != 404:
                self.wrong.append(f"{order} of {name}: {error.response.status_code} {shown(error.response)}")
            return False
        return True


def _one_of(there: Sequence[Thing], act: Act) -> Thing | None:
    return there[act.target % len(there)] if there else None
