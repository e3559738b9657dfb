"""A small server that speaks `jobs.drivers.link.messages`, and does what a test tells it."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cluster.settings import DriverPlace
from jobs.drivers.link.messages import Answer, Beat, Instruction, Register, Registered
from tests.support.processes import wait_for

TOKEN, QUEUE = "the-attempt-s-own-token", "a1b2c3d4"
JOB, ATTEMPT = f"job-{os.getpid()}", 1  # other tests may run beside this one


@dataclass
class WireServer:
    """
    Attributes:
        registered: what a driver is told to run.
        order: what beats are answered with.
        status: of every answer, if not 200.
        error: what the problem of such an answer is called.
        queue: the one that answers name.
        page: status, headers and body of every answer, as of something else than a server of Fleetune.
        raw: what a driver that registers is answered with instead.
        silent: connections are cut without an answer.
        hangs: connections are kept without an answer, until this is taken back.
    """

    registered: Registered
    order: Instruction = Instruction.GO_ON
    status: int | None = None
    error: str = "X"
    queue: str = QUEUE
    page: tuple[int, dict[str, str], bytes] | None = None
    raw: dict[str, Any] | None = None
    silent: bool = False
    hangs: threading.Event = field(default_factory=threading.Event)
    port: int = 0
    pages: int = 0  # answers that were such a page
    held: int = 0  # connections that were kept without an answer
    requests: list[Register | Beat] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def place(self) -> DriverPlace:
        return DriverPlace(f"http://127.0.0.1:{self.port}", JOB, ATTEMPT, TOKEN, QUEUE)

    @property
    def beats(self) -> list[Beat]:
        return [one for one in self.requests if isinstance(one, Beat)]

    @property
    def newest(self) -> Beat:
        return self.beats[-1] if self.beats else Beat(job_id=JOB, attempt=ATTEMPT)

    def wait_for_beats(self, more: int = 1, within_s: float = 60.0) -> None:
        have = len(self.beats)
        wait_for(lambda: len(self.beats) >= have + more, f"{more} more beats have come", within_s)


@contextlib.contextmanager
def wire_server(registered: Registered, port: int = 0) -> Iterator[WireServer]:
    server = WireServer(registered)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            server.held += server.hangs.is_set()
            while server.hangs.is_set() and not server.ended.wait(0.02):
                pass
            if server.silent:
                return
            if server.page is not None:
                server.pages += 1
                self._send(*server.page)
                return
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self._answer(401, {"error": "Unauthorized", "message": "not the token of this attempt"})
                return
            if server.status is not None:
                said = {"error": server.error, "message": f"the test says {server.status}", "queue": server.queue}
                self._answer(server.status, said)
                return
            if self.path == "/v1/driver/register":
                server.requests.append(Register.model_validate_json(body))
                self._answer(200, server.raw or {**server.registered.model_dump(mode="json"), "queue": server.queue})
            else:
                server.requests.append(Beat.model_validate_json(body))
                self._answer(
                    200, Answer(order=server.order, reason="the test", queue=server.queue).model_dump(mode="json")
                )

        def _answer(self, status: int, value: Any) -> None:
            self._send(status, {}, json.dumps(value).encode())

        def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
            with contextlib.suppress(OSError):  # whoever asked has gone
                self.send_response(status)
                for name, given in headers.items():
                    self.send_header(name, given)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
    listening.daemon_threads = True
    server.port = listening.server_port
    thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.ended.set()
        listening.shutdown()
        listening.server_close()
        thread.join()
