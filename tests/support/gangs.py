"""Starting gangs of real processes from a test."""

from __future__ import annotations

import atexit
import functools
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.data.preparation.prepare import prepare
from jobs.data.prepared import Prepared
from jobs.run.paths import JobPaths
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec
from jobs.storage.journal import read_journal
from jobs.training.mailbox import Answer, GangTask, Mailbox

ROOT = pathlib.Path(__file__).parents[2]
_SUPPORT = ROOT / "tests/support"
# Values of PYTHONPATH. With those that have `forked`, Ray's workers are (see `fork_server`). With PACED, training steps
# wait, so that other processes get the cores; with SCARCE, the memory of workers is simulated.
FORKED = f"{_SUPPORT / 'forked'}:{ROOT}"
PACED = f"{_SUPPORT / 'forked'}:{_SUPPORT / 'paced'}:{ROOT}"
PACED_ALONE = f"{_SUPPORT / 'paced'}:{ROOT}"
SCARCE = f"{_SUPPORT / 'forked'}:{_SUPPORT / 'scarce'}:{ROOT}"
STOPPING = f"{_SUPPORT / 'stopping'}:{ROOT}"  # a preparation stops itself after its first part
LINGERING = f"{_SUPPORT / 'lingering'}:{ROOT}"  # a driver waits at the end of a phase until it is stopped
HOLDING = f"{_SUPPORT / 'holding'}:{ROOT}"  # a preparation waits with as many parts or shards as a file says
GANG_WITHIN_S = 500


@dataclass(frozen=True)
class Case:
    """One job of a gang, and where its traces lie."""

    name: str
    spec: Spec
    prepared: Prepared
    folder: pathlib.Path
    stop_at: int | None = None  # somebody asks it to stop after this step
    faults: dict[int, dict[str, bool]] = field(default_factory=dict)  # before a step: what of the storage fails
    poisoned: tuple[int, ...] = ()  # steps with this poison
    poison: str = "nan"  # gradients that are NaN on rank 1; or "logits", 50 times too large on all ranks
    may_fail: bool = False  # a failure of the run is kept
    damaged_at: int | None = None  # before this step, the weights are multiplied by 4, once

    @property
    def failure(self) -> str:
        return (self.folder / f"{self.name}.failure").read_text()

    @property
    def paths(self) -> JobPaths:
        return JobPaths(str(self.folder / self.name))

    @property
    def logits_file(self) -> pathlib.Path:
        return self.folder / f"{self.name}.npy"

    def record(self, column: str) -> list[Any]:
        """One column of the run's metrics."""
        return [record[column] for record in read_journal(self.paths.metrics)]

    def last(self, column: str) -> Any:
        """The newest value of a column that not every record has."""
        return [record[column] for record in read_journal(self.paths.metrics) if column in record][-1]


def case_of(folder: pathlib.Path, name: str, spec: Spec, stop_at: int | None = None) -> Case:
    return Case(name, spec, prepare(spec, spec.model.path, engine="plain", say=lambda text: None), folder, stop_at)


def torchrun(num_workers: int, *command: str, env: dict[str, str] | None = None, timeout: float = 500) -> Any:
    """Run a command under torchrun on loopback; the finished process."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_workers)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **(env or {})}
    return subprocess.run(
        [*launcher, *command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout
    )


def run_gang(
    folder: pathlib.Path, num_workers: int, cases: list[Case], with_export: frozenset[str] = frozenset()
) -> None:
    """Train all cases one after another in one gang."""
    lines = []
    for case in cases:
        spec_file = folder / f"{case.name}.json"
        spec_file.write_bytes(dump_spec(case.spec))
        lines.append(
            {
                "name": case.name,
                "spec": str(spec_file),
                "run_root": f"faulty://{case.paths.root}" if case.faults else case.paths.root,
                "prepared_root": case.prepared.root,
                "logits": str(case.logits_file) if case.name in with_export else "",
                "stop_at": case.stop_at,
                "faults": case.faults,
                "poisoned": case.poisoned,
                "poison": case.poison,
                "damaged_at": case.damaged_at,
                "keep_failure": case.may_fail or bool(case.poisoned),
                "failure": str(case.folder / f"{case.name}.failure"),
            }
        )
    listing = folder / f"cases-{num_workers}.json"
    listing.write_text(json.dumps(lines))
    output = folder / f"cases-{num_workers}.log"
    output.unlink(missing_ok=True)
    _ask({"workers": num_workers, "listing": str(listing), "output": str(output)}, output)


def run_warm_gang(
    folder: pathlib.Path, num_workers: int, base: Case, orders: list[GangTask], poisoned: Sequence[Case] = ()
) -> list[Answer]:
    """Have one warm gang carry out all orders; its answers. `memory.json` in the folder has the resident MB after each.

    Args:
        base: the job that the gang loads; its run's directory becomes the gang's.
        poisoned: trials whose loss is NaN.
    """
    mailbox, spec_file = Mailbox(base.paths.root), folder / f"{base.name}.json"
    spec_file.write_bytes(dump_spec(base.spec))
    for number, order in enumerate([*orders, GangTask(action="end")], 1):
        mailbox.tasks.put(number, order)
    case = {
        "spec": str(spec_file),
        "gang_root": base.paths.root,
        "prepared_root": base.prepared.root,
        "memory": str(folder / "memory.json"),
        "poisoned": [case.paths.root for case in poisoned],
    }
    listing, output = folder / f"warm-{num_workers}.json", folder / f"warm-{num_workers}.log"
    listing.write_text(json.dumps(case))
    output.unlink(missing_ok=True)
    _ask({"workers": num_workers, "listing": str(listing), "output": str(output)}, output)

    def missing() -> None:
        raise AssertionError("the gang has ended without this answer")

    return [mailbox.answers.wait(number, missing) for number in range(1, len(orders) + 1)]


def one_step(folder: pathlib.Path, spec: Spec, piece: int | None = None, factors: Sequence[float] = ()) -> Any:
    """What `make_one_step` writes."""
    (folder / "job.json").write_bytes(dump_spec(spec))
    asked = {"spec": str(folder / "job.json"), "result": str(folder / "step.json"), "piece": piece, "factors": factors}
    (folder / "asked.json").write_text(json.dumps(asked))
    output = folder / "step.log"
    _ask({"workers": 1, "listing": str(folder / "asked.json"), "output": str(output)}, output)
    return json.loads((folder / "step.json").read_text())


def _ask(request: dict[str, Any], output: pathlib.Path) -> None:
    process, code = _forker(), ""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], GANG_WITHIN_S)
        code = process.stdout.readline().strip() if ready else ""
    finally:
        if not code:  # it has ended, or hangs, or this test is interrupted: the next gang comes from another one
            _end(process)
            _forker.cache_clear()
    said = output.read_text(errors="replace")[-20000:] if output.exists() else "nothing"
    assert code == "0", f"the gang ended with exit code {code or 'none'} and said: {said}"


@functools.cache
def _forker() -> subprocess.Popen[str]:
    """Serves until this process ends. What it says of itself is this process's stderr."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.support.forker", "tests.support.gang_cases"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    """It and its gang."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
