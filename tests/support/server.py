"""A real `fleetune serve` process of a test's own, on a port that was free, and a client for it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from cluster.testing import FakeBackend, served
from tests.support.gangs import ROOT
from tests.support.processes import free_port, wait_for

UP_WITHIN_S, ENDS_WITHIN_S = 120.0, 60.0
_ADDRESS = re.compile(r"^ +address +(https?://\S+)", re.MULTILINE)
_PASSES = re.compile(r"^fleetune_pass_seconds_count (\S+)", re.MULTILINE)
COMMAND: Mapping[str, Any] = {
    "kind": "command",
    "name": "job",
    "command": ["true"],
    "resources": {"num_workers": 1, "gpus_per_worker": 1},
}


def spec(name: str = "job", gpus: int = 1, **more: Any) -> dict[str, Any]:
    """Of a command; on a made-up cluster it runs for as long as the cluster was told."""
    return {**COMMAND, "name": name, "resources": {"num_workers": 1, "gpus_per_worker": gpus}, **more}


@dataclass
class Server:
    """Starts, ends and starts again; always with the same store and home.

    Attributes:
        folder: of its own: the home, the log.
        options: of `fleetune serve`, beside --port.
        machines: where they are made up.
    """

    folder: Path
    options: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    machines: FakeBackend | None = None
    port: int = field(default_factory=free_port)  # the same after each start
    process: subprocess.Popen[bytes] | None = None
    url: str = ""
    trusts: ssl.SSLContext | None = None  # of a server with a certificate

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def store(self) -> str:
        return str(self.home / "queue.db")

    @property
    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text() if path.exists() else ""

    def start(self) -> None:
        """Until it is ready."""
        before = len(self.log)
        command = [sys.executable, "-m", "orchestrator", "serve", "--port", str(self.port), *self.options]
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        wait_for(lambda: self._has_ended() or _ADDRESS.search(self.log[before:]), "it says where it is", UP_WITHIN_S)
        found = _ADDRESS.search(self.log[before:])
        assert found is not None, self.log[before:]
        self.url = found.group(1)
        self.port = int(self.url.rpartition(":")[2])
        with self.client() as client:
            wait_for(lambda: self._has_ended() or self._is_ready(client), "it is ready", UP_WITHIN_S)
        assert not self._has_ended(), self.log[before:]

    def end(self) -> int:
        """As Ctrl-C or a service manager would; its exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(ENDS_WITHIN_S)

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(ENDS_WITHIN_S)

    def client(self, token: str | None = None, address: str | None = None) -> httpx.Client:
        """`address`: of this machine's loopback network, from which it asks."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        transport = httpx.HTTPTransport(local_address=address, verify=self.trusts or False)
        return httpx.Client(base_url=self.url, timeout=60.0, headers=headers, trust_env=False, transport=transport)

    def looks_anew(self, token: str | None = None) -> None:
        """Return once it has done a pass over the queue that began after this call: it goes by what it saw then."""
        with self.client(token) as client:

            def passes() -> float:
                return float(_PASSES.findall(client.get("/metrics").text)[0])

            before = passes()
            wait_for(lambda: passes() >= before + 2, "it has ended the pass that it is at, and another one", 120.0)

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`fleetune ARGUMENTS` beside it."""
        return subprocess.run(
            [sys.executable, "-m", "orchestrator", *arguments],
            cwd=ROOT,
            env=self._environment(),
            capture_output=True,
            text=True,
        )

    def token(self, name: str, role: str, tenant: str | None = None) -> str:
        """A new one, made on the store itself."""
        whose = ["--tenant", tenant] if tenant else []
        made = self.run("tokens", "add", name, "--role", role, *whose, "--store", self.store)
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()

    def _environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("FLEETUNE_")}
        return {**own, "FLEETUNE_HOME": str(self.home), **self.environment}

    def _has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def _is_ready(self, client: httpx.Client) -> bool:
        try:
            return client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False


@contextlib.contextmanager
def server(
    folder: Path,
    *options: str,
    nodes: int = 2,
    runs_s: float = 1e6,
    rate: float = 1.0,
    local: bool = False,
    secrets: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Ready, on a made-up cluster or (`local`) on this machine.

    Args:
        runs_s: how long a job runs there, in the cluster's seconds; `rate` of them are one real second.
        secrets: by name; the tenant `default` may use them.
    """
    environment = {f"FLEETUNE_SECRET_{name}": value for name, value in (secrets or {}).items()}
    with contextlib.ExitStack() as stack:
        found = Server(folder, options, environment)
        if not local:
            made_up = served(folder, "--nodes", str(nodes), "--rate", str(rate), "--runs-s", str(runs_s))
            found.machines = stack.enter_context(made_up)
            found.options = (*options, "--address", f"fake:{folder / 'cluster'}")
        try:
            found.start()
            if secrets:
                with found.client() as client:
                    given = {"restrictions": {"secrets": list(secrets)}}
                    client.put("/v1/tenants/default", json=given).raise_for_status()
            yield found
        finally:
            if found.process is not None and found.process.poll() is None:
                found.kill()
