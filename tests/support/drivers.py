"""Drivers of queued jobs as their machines start them, with a small server to speak to."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.local.supervisor import descendants, kill
from jobs.drivers.link.messages import Registered
from jobs.spec.load import dump_spec, spec_of
from tests.support.gangs import FORKED, ROOT
from tests.support.processes import process_lives, wait_for
from tests.support.wireserver import WireServer


class Driver:
    """A process `python -m jobs.drivers.attempt`, and what it has written so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def ended(self, within_s: float = 400.0) -> int:
        try:
            code = self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it lives after {within_s:.0f} s, and has written:\n{self.output}")
        self._reader.join(60)
        return code

    def close(self) -> None:
        self.ended()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def wait_for(self, text: str, within_s: float = 240.0) -> None:
        try:
            wait_for(lambda: text in self.output or self.process.poll() is not None, f"it writes {text!r}", within_s)
        finally:
            assert text in self.output, self.output


@contextlib.contextmanager
def driver(server: WireServer, **environment: str) -> Iterator[Driver]:
    """Nothing of it is left at the end, whatever it has started."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.drivers.attempt"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": FORKED, **server.place.environment(), **environment},
    )  # fmt: skip
    made = Driver(process)
    try:
        yield made
    finally:
        kill([*descendants(process.pid), process.pid] if process_lives(process.pid) else [])
        made.close()


def registered(spec: dict[str, Any], **fields: Any) -> Registered:
    """What the server tells a driver of a job with that spec; two workers on one node, if nothing else is said."""
    made = json.loads(dump_spec(spec_of(spec)))
    workers = made["resources"]["num_workers"]
    given: dict[str, Any] = {"placement": (("n1", workers),), "engine": "local", "beat_every_s": 0.2}
    return Registered(kind=made["kind"], spec=made, **{**given, **fields})


def rss_mb(pid: int) -> float:
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024
