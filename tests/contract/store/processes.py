"""Workers that use one store at once."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
Worker = subprocess.Popen[str]


@contextlib.contextmanager
def workers(number: int, command: str, url: str) -> Iterator[list[Worker]]:
    """Started, and about to begin; what is left of them at the end is killed."""
    arguments = [sys.executable, "-W", "error", "-m", "tests.contract.store.worker", command, url]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with contextlib.ExitStack() as stack:
        started = []
        for _ in range(number):
            process = stack.enter_context(subprocess.Popen(arguments, cwd=ROOT, **pipes))
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield started


def begin(started: list[Worker]) -> None:
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")


def lines(started: list[Worker]) -> list[list[str]]:
    """What each says until it has ended. Raises AssertionError if one fails."""
    said = [process.communicate(timeout=300)[0].splitlines() for process in started]
    assert [process.returncode for process in started] == [0] * len(started)
    return said
