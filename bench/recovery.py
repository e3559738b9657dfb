"""Seconds from a fault to training again, and how much of the training was lost, by the kind of fault.

    python -m bench.recovery [--save-steps 40 200] [--faults ...] [--rounds 1] [--smoke]

A tiny model trains as a job of the queue, on the head and the two nodes of `make soak`, hosts of their own on this
machine, for which it needs root. First, the time from the job's lease to the end of its first step is measured. Then,
halfway between two checkpoints, something is done to it; measured is the time until the first new step is in the run's
metrics. Lines for people go to stderr, one JSON object for the start and for each fault to stdout.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.run.checkpoints import committed_steps
from jobs.run.paths import JobPaths
from jobs.storage.journal import Record, part_names, read_journal, read_part, written_at_s
from tests.soak.world import Node, Unreachable, World, end_all, remove, send, until, world
from tests.support import tiny

STEPS = 1_000_000  # more than any of it takes
SERVER_DOWN_S = 15.0
WITHIN_S = 400.0
NOTICE_S = 300.0


@dataclass(frozen=True)
class Recovered:
    """One fault.

    Attributes:
        seconds: from the fault to the end of the first new step, as its metrics came to storage: up to a second late.
            Where training did not stop, the longest step from the fault on, less the median one before.
        lost_s: of training: from the end of the step that it went back to, to the fault; 0 where it went back to none.
        steps_again: computed again, of those whose metrics had come to storage.
        steps_lost: computed again, by the time lost and the time of a step.
        attempts: of the job, that it took.
    """

    fault: str
    save_steps: int
    round: int
    seconds: float
    lost_s: float
    steps_again: int
    steps_lost: int
    attempts: int
    step_s: float  # median, before
    load_average: float


def main() -> None:
    options = arguments()
    for save_steps in options.save_steps:
        for number in range(options.rounds):
            measure(save_steps, number, options.faults)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save-steps", type=int, nargs="+", default=[40, 200], metavar="N")
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--smoke", action="store_true", help="a worker and the server, with one interval")
    options = parser.parse_args()
    if options.smoke:
        options.save_steps, options.faults, options.rounds = [20], ["server", "worker"], 1
    return options


def measure(save_steps: int, number: int, faults: list[str]) -> None:
    """Each fault once, in one life of one job."""
    with world() as place, removed(place.folder):
        bench = Bench(place, save_steps)
        start_s = round(bench.start_s(), 2)
        print(json.dumps({"result": "start", "round": number, "seconds": start_s}), flush=True)
        say(f"from the lease to the end of the first step: {start_s:.1f} s")
        for fault in faults:
            found = bench.measure(fault, number)
            print(json.dumps({"result": "recovery", **asdict(found)}), flush=True)
            say(
                f"{fault}, a checkpoint every {save_steps} steps: {found.seconds:.1f} s, of training lost "
                f"{found.lost_s:.1f} s, {found.steps_again} steps seen twice"
            )


@contextlib.contextmanager
def removed(folder: Path) -> Iterator[None]:
    """The folder is gone afterwards, whatever happens."""
    try:
        yield
    finally:
        remove(folder)


class Bench:
    """The job, and what is done to it."""

    def __init__(self, place: World, save_steps: int) -> None:
        self.world, self.save_steps = place, save_steps
        folder = place.folder
        spec = tiny.spec_of(
            folder / "runs", folder / "llama", folder / "text.jsonl", name="recovers", train__max_steps=STEPS,
            checkpoint__save_steps=save_steps, checkpoint__save_minutes=None, train__global_batch_size=4,
            train__per_device_train_batch_size=2,
        )  # fmt: skip
        (job,) = self.ask("POST", "/v1/jobs", {"specs": [spec.model_dump(mode="json")], "key": "recovers"})["jobs"]
        self.job_id = str(job["job_id"])
        until(lambda: self.job()["run"], "the server knows the run", WITHIN_S)
        self.paths = JobPaths(self.job()["run"])
        until(lambda: self.groups() > 0, "it has workers", WITHIN_S)

    def start_s(self) -> float:
        """Seconds from the lease to the end of the first step, with the preparation of the data."""
        until(lambda: bool(read_journal(self.paths.metrics)), "it trains", WITHIN_S)
        return float(read_journal(self.paths.metrics)[0]["at"] - self.job()["started_s"])

    def measure(self, fault: str, number: int) -> Recovered:
        self.repair()
        before = self.halfway()
        step_s = statistics.median(record["step_time_s"] for record in before[-self.save_steps :])
        attempt, groups, load = self.job()["attempt"], self.groups(), os.getloadavg()[0]
        say(f"{fault} at step {before[-1]['step']}")
        at_s = time.time()
        FAULTS[fault](self)
        goes_on = fault == "server"  # without other workers
        seconds, lost_s, steps_again = self.stood_still(at_s, step_s) if goes_on else self.again(at_s, groups)
        return Recovered(
            fault=fault,
            save_steps=self.save_steps,
            round=number,
            seconds=round(seconds, 2),
            lost_s=round(lost_s, 2),
            steps_again=steps_again,
            steps_lost=round(lost_s / step_s),
            attempts=self.job()["attempt"] - attempt,
            step_s=round(step_s, 4),
            load_average=round(load, 2),
        )

    def halfway(self) -> list[Record]:
        """Waits until half an interval has gone by since a checkpoint of the group that trains now."""
        began, start = read_journal(self.paths.metrics), self.started()[1]
        until(lambda: self.saved() > start, "it has saved", WITHIN_S)
        say(f"{len(began)} steps so far")
        saved, step_s = self.saved(), statistics.median(one["step_time_s"] for one in began[-50:]) if began else 0.2
        until(lambda: self.saved() > saved, "it saves once more", WITHIN_S + self.save_steps)
        time.sleep(self.save_steps / 2 * step_s)
        return read_journal(self.paths.metrics)

    def again(self, at_s: float, groups: int) -> tuple[float, float, int]:
        """Seconds to the first new step, seconds of training lost, steps seen twice."""
        until(lambda: self.groups() > groups, "other workers have begun", WITHIN_S)
        began_s, start = self.started()

        def new() -> tuple[float, list[Record]] | None:
            for name in part_names(self.paths.metrics):
                if written_at_s(name) > began_s:
                    return written_at_s(name), read_part(self.paths.metrics, name)
            return None

        until(lambda: new() is not None, "they train", WITHIN_S)
        found = new()
        assert found is not None and found[1][0]["step"] == start + 1
        ended_s = found[0] - sum(record["step_time_s"] for record in found[1][1:])
        old = [
            record["step"]
            for name in part_names(self.paths.metrics)
            if written_at_s(name) <= began_s
            for record in read_part(self.paths.metrics, name)
        ]
        again = max(0, old[-1] - start)
        saved_s = (Path(self.paths.root) / "checkpoints" / f"step-{start:08d}" / "commit.json").stat().st_mtime
        return ended_s - at_s, max(0.0, at_s - saved_s), again

    def stood_still(self, at_s: float, step_s: float) -> tuple[float, float, int]:
        """By how much the longest step since then was longer than they are; nothing is lost, or seen twice."""
        steps: list[float] = []

        def seen() -> bool:
            names = [name for name in part_names(self.paths.metrics) if written_at_s(name) > at_s + SERVER_DOWN_S]
            return len(names) >= 2

        until(seen, "it trains on", WITHIN_S)
        for name in part_names(self.paths.metrics):
            if written_at_s(name) > at_s:
                steps += [record["step_time_s"] for record in read_part(self.paths.metrics, name)]
        return max(0.0, max(steps) - step_s), 0.0, 0

    def groups(self) -> int:
        """How many groups of workers there were."""
        folder = Path(self.paths.attempt(0)).parent
        return len(list(folder.iterdir())) if folder.exists() else 0

    def started(self) -> tuple[float, int]:
        """When the newest group began, and after which step."""
        file = max(Path(self.paths.attempt(0)).parent.iterdir())
        return file.stat().st_mtime, int(json.loads(file.read_text())["start"])

    def saved(self) -> int:
        return max(committed_steps(self.paths), default=0)

    def job(self) -> dict[str, Any]:
        return dict(self.ask("GET", f"/v1/jobs/{self.job_id}"))

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """As often as it takes: on a busy machine an answer may be late."""
        while True:
            try:
                return self.world.api(method, path, body)
            except Unreachable:
                time.sleep(0.5)

    def node(self) -> tuple[Node, str]:
        """The node that has the first worker of the job, and its id."""
        node_id = str(self.job()["placement"][0][0])
        names = {one: name for name, one in self.world.living().items()}
        return next(node for node in self.world.nodes if node.name == names[node_id]), node_id

    def repair(self) -> None:
        """Both nodes are there again."""
        for node in self.world.nodes:
            if node.away:
                self.world.start_node(node)
                node.away = False
        until(lambda: len(self.world.living()) > len(self.world.nodes), "the nodes are back", WITHIN_S)

    # What is done.

    def kill_worker(self) -> None:
        send(self.world.workers(self.node()[0])[:1], signal.SIGKILL)

    def kill_driver(self) -> None:
        submission = f"{self.job_id}-{self.job()['attempt']}"
        send([pid for pid, name in self.world.drivers().items() if name == submission], signal.SIGKILL)

    def kill_server(self) -> None:
        self.world.kill_server()
        time.sleep(SERVER_DOWN_S)
        self.world.start_server()
        until(self.world.ready, "the server is back", WITHIN_S)

    def take_node(self) -> None:
        node, _ = self.node()
        node.away = True
        end_all(node)

    def drain_node(self) -> None:
        node, node_id = self.node()
        node.away = True
        self.world.drain_by_ray(node, node_id, NOTICE_S)

    def pause_and_resume(self) -> None:
        self.ask("POST", f"/v1/jobs/{self.job_id}/pause")
        until(lambda: self.job()["state"] == "queued", "it is paused", WITHIN_S)
        self.ask("POST", f"/v1/jobs/{self.job_id}/resume")


FAULTS: dict[str, Callable[[Bench], None]] = {
    "server": Bench.kill_server,
    "pause": Bench.pause_and_resume,
    "worker": Bench.kill_worker,
    "driver": Bench.kill_driver,
    "drain": Bench.drain_node,
    "node": Bench.take_node,
}


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
