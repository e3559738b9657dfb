"""Whole runs of small models, started as a user starts them."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import psutil
import pytest

from jobs.run.outcome import Outcome, read_outcome
from jobs.run.paths import JobPaths
from jobs.spec.finetune import Spec
from jobs.spec.load import dump_spec
from jobs.storage.journal import read_journal
from tests.support import tiny
from tests.support.gangs import FORKED, ROOT
from tests.support.processes import command_of, originals, processes_with

FLEETUNE = pathlib.Path(sys.executable).with_name("fleetune")
BEGINS_WITHIN_S = 400.0  # a start took over 200 s on a machine with a load of 30


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with a tiny Llama, a GPT-2 with dropout, a BERT, a text file and a labelled file."""
    folder = tmp_path_factory.mktemp("workshop")
    tiny.save_model(folder / "llama", "llama")
    tiny.save_model(folder / "gpt2", "gpt2", dropout=0.1)
    tiny.save_model(folder / "bert", "bert")
    tiny.write_text(folder / "text.jsonl", 400)
    tiny.write_labelled(folder / "labelled.jsonl", 200, 3)
    return folder


@pytest.fixture
def write_spec(workshop: pathlib.Path, tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
    """Write a spec file; takes the changes that `tiny.spec_of` takes."""

    def write(model: str = "llama", data: str = "text.jsonl", **changes: Any) -> pathlib.Path:
        spec: Spec = tiny.spec_of(workshop / "runs", workshop / model, workshop / data, **changes)
        file = tmp_path / "job.json"
        file.write_bytes(dump_spec(spec))
        return file

    return write


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": FORKED, **extra}


def fleetune(
    *arguments: str | pathlib.Path, timeout: float = 400, env: Mapping[str, str] | None = None, **extra: str
) -> Any:
    """Run the command line; the finished process. `env` and `extra`: further environment variables."""
    return subprocess.run(
        [str(FLEETUNE), *map(str, arguments)],
        cwd=ROOT,
        env=environment(**(env or {}), **extra),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@contextlib.contextmanager
def started(*arguments: str | pathlib.Path, **extra: str) -> Iterator[subprocess.Popen[str]]:
    """`fleetune run ARGUMENTS` in a process group; stdout and stderr are one stream of lines. Killed at the end."""
    process = subprocess.Popen(
        [str(FLEETUNE), "run", *map(str, arguments)], cwd=ROOT, env=environment(**extra), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, process_group=0,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:  # a failure may have read it to its end, after which `communicate` fails
            process.stdout.close()


def runs_in(workshop: pathlib.Path) -> set[pathlib.Path]:
    return set((workshop / "runs").glob("run-*"))


def newest_run(workshop: pathlib.Path) -> JobPaths:
    runs = [path for path in (workshop / "runs").iterdir() if (path / "spec.json").exists()]
    return JobPaths(str(max(runs, key=lambda path: (path / "spec.json").stat().st_mtime_ns)))


def outcome_of(paths: JobPaths) -> Outcome:
    outcome = read_outcome(paths)
    assert outcome is not None
    return outcome


def wait_for_step(process: subprocess.Popen[str], paths: JobPaths, step: int) -> None:
    deadline = time.monotonic() + BEGINS_WITHIN_S
    while max((record["step"] for record in read_journal(paths.metrics)), default=0) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.2)


def starts(paths: JobPaths) -> list[int]:
    """The step at which each worker group began."""
    folder = pathlib.Path(paths.attempt(0)).parent
    return [json.loads(file.read_text())["start"] for file in sorted(folder.glob("[0-9]*.json"))]


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Return the process ids of the run's workers. The parent of a forked worker is the fork server."""
    below = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
    forked = processes_with(*(f"RAY_RAYLET_PID={pid}" for pid in below))
    return originals(pid for pid in {*below, *forked} if b"RayTrainWorker" in command_of(pid))
