"""What is seen of a soak from outside, for the checks: the server's answers, the journals of programs, processes."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from jobs.run.paths import JobPaths
from jobs.storage.journal import read_journal
from orchestrator.queue.states import ENDED, Reason, State
from tests.soak import checks
from tests.soak.acts import SAVE_STEPS, Doing
from tests.soak.checks import Beat, Happened, Holding, Seen
from tests.soak.world import CPUS, Unreachable, World

EMPTY_WITHIN_S = 90.0


@dataclass
class Watch:
    """Looks, and keeps what was wrong."""

    world: World
    doing: Doing
    violations: list[str] = field(default_factory=list)
    looks: int = 0
    unanswered: int = 0
    steps: int = 0
    redone: int = 0
    attempts: int = 0

    def look(self) -> None:
        """At what can be checked at any moment."""
        self._found(checks.two_drivers(_driver(name) for name in self.world.drivers().values()))
        self.looks += 1
        try:
            jobs, holdings = self.jobs(), self.holdings()
        except (Unreachable, httpx.HTTPStatusError) as error:
            self.unanswered += 1
            if isinstance(error, httpx.HTTPStatusError):
                self._found([f"{error.request.url.path} was answered with {error.response.status_code}"])
            return
        self.looks += 2
        self._found(checks.over_capacity(holdings))
        self._found(checks.gone_back(self.doing.seen, jobs))
        self.doing.seen.update({job.job_id: job for job in jobs})

    def look_at_files(self) -> None:
        self._found(checks.two_at_once(self.beats(), self.doing.cuts))
        self.looks += 1

    def all_have_ended(self) -> bool:
        seen = self.doing.seen
        return all(job in seen and seen[job].state in ENDED for job in self.doing.fates)

    def look_at_the_end(self) -> None:
        """Once all jobs have ended, or have had their time."""
        beats, jobs = self.beats(), list(self.doing.seen.values())
        self.attempts = sum(job.attempt for job in jobs)
        self._found(checks.two_at_once(beats, self.doing.cuts))
        self._found(checks.ends(jobs, self.doing.fates.values(), beats))
        self._found(checks.histories(self.events(), [job for job in jobs if job.state in ENDED]))
        for job in jobs:
            self._look_at_run(job)
        self._found(self._what_is_left())
        self._found(checks.tracebacks(self.world.log))
        self._found(self.doing.wrong)
        self.looks += 6 + len(jobs)

    def jobs(self) -> list[Seen]:
        page = self.world.api("GET", "/v1/jobs?limit=1000")["jobs"]
        return [Seen(one["job_id"], State(one["state"]), Reason(one["reason"]), one["attempt"]) for one in page]

    def holdings(self) -> list[Holding]:
        """A worker of these jobs has a CPU."""
        views = self.world.api("GET", "/v1/nodes")["nodes"]
        return [Holding(one["name"], one["cpus"], sum(workers for _, workers in one["held"])) for one in views]

    def events(self) -> list[Happened]:
        found: list[Happened] = []
        while True:
            after = found[-1].number if found else 0
            page = self.world.api("GET", f"/v1/events?after={after}&limit=1000")["events"]
            found += [Happened(one["job_id"] or "", one["number"], one["kind"]) for one in page]
            if not page:
                return found

    def beats(self) -> list[Beat]:
        files = sorted((self.world.folder / "journals").glob("*.jsonl"))
        return [Beat(**json.loads(line)) for file in files for line in file.read_text().splitlines()]

    def _look_at_run(self, job: Seen) -> None:
        work = self.doing.works[job.job_id]
        root = str(self.world.api("GET", f"/v1/jobs/{job.job_id}")["run"] or "") if work.training else ""
        if not root or not Path(JobPaths(root).metrics).exists():
            return
        recorded = [int(record["step"]) for record in read_journal(JobPaths(root).metrics) if "loss" in record]
        total = work.steps if job.state is State.SUCCEEDED else None
        self._found(checks.steps(job.job_id, recorded, SAVE_STEPS, self.doing.hard, total))
        self.steps += len(recorded)
        self.redone += checks.redone(recorded)

    def _what_is_left(self) -> list[str]:
        """Ray takes a while to see, and longer to say, that something has gone."""
        deadline = time.monotonic() + EMPTY_WITHIN_S
        left = ["nobody has looked"]
        while left and time.monotonic() < deadline:
            try:
                left = self._left_now()
            except Unreachable as error:
                left = [f"at the end nothing was answered: {error}"]
            time.sleep(1.0 if left else 0.0)
        return left

    def _left_now(self) -> list[str]:
        groups = [one for one in self.world.listed("placement_groups") if one["state"] != "REMOVED"]
        alive = self.world.living()
        cpus = sum(
            int(node["resources_total"].get("CPU", 0))
            for node in self.world.listed("nodes")
            if node["node_id"] in alive.values()
        )
        used = {name: self.world.used_cpus().get(node_id, 0.0) for name, node_id in alive.items()}
        processes = [f"driver {name}" for name in self.world.drivers().values()]
        processes += [f"program of {job}" for node in self.world.nodes for job in self.world.programs(node).values()]
        have = (cpus, CPUS * len(self.world.nodes))
        return checks.leftovers(self.holdings(), len(groups), used, processes, have)

    def _found(self, wrong: Sequence[str]) -> None:
        for one in wrong:
            if one not in self.violations:
                self.violations.append(one)
                self.doing.say(f"VIOLATION {one}")


def _driver(submission: str) -> tuple[str, int]:
    job, _, attempt = submission.rpartition("-")
    return job, int(attempt)
