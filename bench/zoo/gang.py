"""Gangs of processes that stay alive from model to model, so that imports are paid once."""

from __future__ import annotations

import json
import os
import pathlib
import selectors
import socket
import subprocess
import sys
import time
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
_AFTER_AN_ERROR_S = 5.0  # for the other ranks, which may wait in a collective for the one that failed


class Gang:
    """`size` processes of `bench.zoo.member`; started with the first order, and again after a failure."""

    def __init__(self, size: int, log: pathlib.Path) -> None:
        self._size, self._log = size, log
        self._members: list[subprocess.Popen[str]] = []

    def send(self, order: dict[str, Any]) -> None:
        if not self._members:
            self._start()
        for member in self._members:
            assert member.stdin is not None
            member.stdin.write(json.dumps(order) + "\n")
            member.stdin.flush()

    def answer(self, timeout_s: float) -> dict[str, Any]:
        """Rank 0's answer; `error` where a rank failed, died or took too long, after which the gang starts anew."""
        answers = self._answers(time.monotonic() + timeout_s)
        errors = [answer["error"] for answer in answers.values() if "error" in answer]
        if errors or len(answers) < self._size:
            if self._size > 1 or len(answers) < self._size:
                self.stop()
            return {"error": errors[0] if errors else f"no answer within {timeout_s:.0f} s, or the process died"}
        return answers[0]

    def _answers(self, deadline: float) -> dict[int, dict[str, Any]]:
        answers: dict[int, dict[str, Any]] = {}
        with selectors.DefaultSelector() as selector:
            for rank, member in enumerate(self._members):
                assert member.stdout is not None
                selector.register(member.stdout, selectors.EVENT_READ, rank)
            while len(answers) < self._size and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    selector.unregister(key.fileobj)
                    line = key.fileobj.readline()  # type: ignore[union-attr]
                    if not line:  # it died
                        return answers
                    answers[key.data] = json.loads(line)
                    if "error" in answers[key.data]:
                        deadline = min(deadline, time.monotonic() + _AFTER_AN_ERROR_S)
        return answers

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}
        for rank in range(self._size):
            log = f"{self._log}-{self._size}-{rank}.log"
            command = [sys.executable, "-m", "bench.zoo.member", str(rank), str(self._size), str(port), log]
            self._members.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )

    def stop(self) -> None:
        for member in self._members:
            member.kill()
            member.wait()
            for pipe in (member.stdin, member.stdout):
                assert pipe is not None
                pipe.close()
        self._members = []
