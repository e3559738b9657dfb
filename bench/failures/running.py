"""Runs one case as a user runs it, and reads its result."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.failures.given import Workshop, spec_of, spec_text
from bench.failures.judging import Expected, Kind, Seen
from bench.failures.planting import Plant, as_variable
from jobs.run.outcome import read_outcome
from jobs.run.paths import JobPaths
from jobs.storage.journal import read_journal
from tests.support.forked import fork_request

ROOT = Path(__file__).resolve().parents[2]
PLANTED, FORKED = Path(__file__).with_name("planted"), ROOT / "tests/support/forked"
WITHIN_S = 600.0
FLEETUNE = Path(sys.executable).with_name("fleetune")


@dataclass(frozen=True)
class Case:
    """One planted failure: a row of the table.

    Attributes:
        changes: of the spec, by dotted name.
        plants: what fails in the processes of the run.
        environment: variables of the run; `{folder}` in a value is an empty directory.
        storage: storage_path of the run; "" is a local directory, and faulty:// one with the faults of the plants.
        spoil: changes the text of the spec.
        act: what is done from outside when a worker waits for it (`wait` of the plants): driver, then worker. It
            returns False where it could not be done.
        again: what is done to the run's directory when it has ended; it is then resumed without the plants.
        quick: part of the short table.
    """

    name: str
    kind: Kind
    expected: Expected
    model: str = "llama"
    data: str = "text"
    changes: dict[str, Any] = field(default_factory=dict)
    plants: tuple[Plant, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    storage: str = ""
    spoil: Callable[[str], str] | None = None
    act: Callable[[int, int], object] | None = None
    again: Callable[[JobPaths], object] | None = None
    quick: bool = False


def run_case(case: Case, place: Workshop) -> Seen:
    folder = place.folder / "cases" / case.name.replace(" ", "-")
    notes, runs = folder / "notes", folder / "runs"
    for one in (notes, runs):
        one.mkdir(parents=True)
    storage = case.storage if case.storage.startswith("/") else f"{case.storage}{runs}"
    text = spec_text(spec_of(place, storage, case.model, case.data, case.changes))
    file = folder / "job.yaml"
    file.write_text(case.spoil(text) if case.spoil else text)
    began = time.monotonic()
    code, output = _run([str(file)], case, notes)
    if case.again is not None:
        (paths,) = _runs_in(runs)
        case.again(paths)
        code, output = _run(["--resume", paths.root], case, None)
    return seen_of(runs, code, output, time.monotonic() - began)


def seen_of(runs: Path, code: int, output: str, seconds: float) -> Seen:
    found = _runs_in(runs)
    if not found:
        return Seen(code, output, seconds=seconds)
    (paths,) = found
    attempts = Path(paths.attempt(0)).parent
    return Seen(
        code,
        output,
        read_outcome(paths),
        tuple(read_journal(paths.events)),
        len(list(attempts.iterdir())) if attempts.exists() else 0,
        seconds,
    )


def _runs_in(folder: Path) -> list[JobPaths]:
    return [JobPaths(str(path.parent)) for path in folder.glob("*/spec.json")]


def _run(arguments: list[str], case: Case, notes: Path | None) -> tuple[int, str]:
    """Run `fleetune run`; its exit code, and all that it printed. `notes`: None plants nothing.

    In the tests of this repository, workers are forked: see `tests.support.fork_server`.
    """
    path = [FORKED] if fork_request.SERVER in os.environ else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if notes is not None:
        environment |= {name: value.format(folder=notes) for name, value in case.environment.items()}
    if notes is not None and case.plants:
        path.append(PLANTED)
        environment["PLANTED"] = as_variable(case.plants, notes)
    environment["PYTHONPATH"] = os.pathsep.join(map(str, [*path, ROOT]))
    process = subprocess.Popen(
        [str(FLEETUNE), "run", *arguments], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        if notes is not None and case.act is not None:
            _act(case.act, process, notes)
        output, _ = process.communicate(timeout=WITHIN_S)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        process.kill()
        return -1, f"did not end within {WITHIN_S:.0f} s:\n{process.communicate()[0]}"
    finally:
        if process.poll() is None:  # the benchmark was interrupted
            process.kill()


def _act(act: Callable[[int, int], object], process: subprocess.Popen[str], notes: Path) -> None:
    """Act when a worker waits."""
    deadline = time.monotonic() + WITHIN_S
    while process.poll() is None and time.monotonic() < deadline:
        if (notes / "waits").exists():
            if act(process.pid, int((notes / "waits").read_text())) is False:
                print("not planted: the kernel did not kill the worker, a SIGKILL did", file=sys.stderr)
            return
        time.sleep(0.1)


def newest_checkpoint(paths: JobPaths) -> Path:
    from jobs.run.checkpoints import committed_steps

    return Path(paths.checkpoint(committed_steps(paths)[-1]))


def flip_a_byte(paths: JobPaths) -> None:
    """Damage the newest checkpoint."""
    file = sorted(newest_checkpoint(paths).glob("*.safetensors"))[-1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
