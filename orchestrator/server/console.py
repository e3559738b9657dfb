"""Console output of a server: a greeting at its start, then few lines, without secrets."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from importlib.metadata import version

from cluster.capacity.inventory import Inventory
from cluster.errors import BackendUnreachable
from cluster.text import many
from orchestrator.client.discovery import USUAL_URL
from orchestrator.service.context.context import ServiceContext
from orchestrator.service.observability.scrub import Scrubber

_AHEAD_S = 5.0


class Output:
    """Prints lines. Thread-safe. If the terminal is gone, the server goes on."""

    def __init__(self, scrub: Scrubber, verbose: bool = False) -> None:
        self.scrub, self._verbose = scrub, verbose
        self._lock = threading.RLock()  # while it prints, a finalizer may log
        self._gone = False

    def say(self, text: str) -> None:
        """Print a line with the time (UTC)."""
        self._write(f"{time.strftime('%H:%M:%SZ', time.gmtime())} {self.scrub.line(text)}")

    def greet(self, lines: Sequence[str]) -> None:
        self._write(self.scrub.line("\n".join(lines)))

    def take_logs(self) -> None:
        """Print log messages of libraries: errors only, or more if verbose."""
        handler = _Handler(self)
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logging.basicConfig(handlers=[handler], level=logging.INFO if self._verbose else logging.ERROR, force=True)
        for name in ("httpx", "httpcore", "alembic", "urllib3"):
            logging.getLogger(name).setLevel(logging.ERROR)

    def _write(self, text: str) -> None:
        with self._lock:
            try:
                if not self._gone:
                    print(text, flush=True)
            except (OSError, ValueError):
                self._gone = True


class _Handler(logging.Handler):
    def __init__(self, output: Output) -> None:
        super().__init__()
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        self._output.say(self.format(record))


def greeting(
    context: ServiceContext, *, store: str, machines: str, url: str, named: bool, tokens_needed: bool, in_clear: bool
) -> Sequence[str]:
    """Return the lines of the greeting.

    Args:
        store, machines: names for people.
        url: the URL for people on this machine.
        named: the URL is recorded in FLEETUNE_HOME, where clients on this machine find it.
        in_clear: other machines reach the server, without encryption.
    """
    try:
        machines = f"{machines}: {_size(context.machines.inventory())}"
    except BackendUnreachable as error:
        machines = f"{machines}, which do not answer yet: {error}"
    found = [
        f"Fleetune {version('fleetune')}",
        f"  store     {store}",
        f"  machines  {machines}",
        f"  address   {url}{f' (drivers: {context.url})' if context.url != url else ''}",
        f"  tokens    {_tokens(tokens_needed, in_clear)}",
    ]
    found += [f"  secrets   {', '.join(sorted(context.secrets))}"] if context.secrets else []
    ahead_s = context.clock.now_s() - time.time()
    if ahead_s > _AHEAD_S:
        found.append(
            f"  clock     {ahead_s:.0f} s behind what the store has seen: time stands still until it is set right"
        )
    where = "" if named or url == USUAL_URL else f"FLEETUNE_URL={url} "
    following = f"Next:  {where}fleetune submit job.yaml  |  {where}fleetune queue"
    return [*found, "", following, "Ctrl-C stops the server; jobs go on.", ""]


def _size(inventory: Inventory) -> str:
    nodes = inventory.nodes
    kinds = sorted({node.accelerator_type for node in nodes if node.accelerator_type})
    gpus = f"{inventory.gpus} GPUs" + (f" ({', '.join(kinds)})" if kinds else "")
    more = f"; may get {inventory.most_more} more" if inventory.growth.types else ""
    return f"{many(len(nodes), 'node')}, {inventory.cpus} CPUs, {gpus}{more}"


def _tokens(needed: bool, in_clear: bool) -> str:
    if not needed:
        return "none are needed: all of your programs on this machine have full access, and no others"
    clear = "; they are sent unencrypted: keep to a network that you trust, or give --tls-cert and --tls-key"
    return f"needed (FLEETUNE_TOKEN){clear if in_clear else ''}"
