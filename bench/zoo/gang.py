"""Gangs of processes that stay alive from model to model and are forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import pathlib
import socket
import threading
import time
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]
_AFTER_AN_ERROR_S = 5.0  # for the other ranks, which may wait in a collective for the one that failed
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["bench.zoo.member"])


class Gang:
    """`size` processes that run `bench.zoo.member.serve`; started with the first order, and again after a failure."""

    def __init__(self, size: int, log: pathlib.Path) -> None:
        self._size, self._log = size, log
        self._members: list[tuple[BaseProcess, Connection]] = []
        self._busy = threading.Lock()

    def ask(self, order: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Rank 0's answer; `error` where a rank failed, died or took too long, after which the gang starts anew.

        Threads may call it at once: one order is carried out at a time.
        """
        with self._busy:
            return self._ask(order, timeout_s)

    def _ask(self, order: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        if not self._members:
            self._start()
        for _, connection in self._members:
            connection.send(order)
        answers = self._answers(time.monotonic() + timeout_s)
        errors = [answer["error"] for answer in answers.values() if "error" in answer]
        if errors or len(answers) < self._size:
            self.stop()
            return {"error": errors[0] if errors else f"no answer within {timeout_s:.0f} s, or the process died"}
        return answers[0]

    def _answers(self, deadline: float) -> dict[int, dict[str, Any]]:
        answers: dict[int, dict[str, Any]] = {}
        ranks = {connection: rank for rank, (_, connection) in enumerate(self._members)}
        while len(answers) < self._size and (left := deadline - time.monotonic()) > 0:
            for connection in wait([one for one, rank in ranks.items() if rank not in answers], left):
                assert isinstance(connection, Connection)
                try:
                    answer = answers[ranks[connection]] = connection.recv()
                except (EOFError, OSError):  # it died
                    return answers
                if "error" in answer:
                    deadline = min(deadline, time.monotonic() + _AFTER_AN_ERROR_S)
        return answers

    def _start(self) -> None:
        from bench.zoo.serving import serve

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        for rank in range(self._size):
            ours, theirs = _CONTEXT.Pipe()
            log = f"{self._log}-{self._size}-{rank}.log"
            member = _CONTEXT.Process(target=serve, args=(rank, self._size, port, log, theirs), daemon=True)
            member.start()
            theirs.close()
            self._members.append((member, ours))

    def stop(self) -> None:
        for member, connection in self._members:
            member.kill()
            member.join()
            connection.close()
        self._members = []
