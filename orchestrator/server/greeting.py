"""The greeting that a server prints at its start."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from cluster.capacity.inventory import Inventory
from cluster.errors import BackendUnreachable
from orchestrator.service.context.context import ServiceContext

_AHEAD_S = 5.0


@dataclass(frozen=True)
class Facts:
    """The facts of the greeting.

    Attributes:
        store, machines: names for people.
        url: the URL for people on this machine.
        named: the URL is recorded in FLEETUNE_HOME, where clients on this machine find it.
    """

    store: str
    machines: str
    url: str
    tokens_needed: bool
    named: bool
    open_to_others: bool
    encrypted: bool


def lines(context: ServiceContext, facts: Facts) -> Sequence[str]:
    try:
        machines = f"{facts.machines}: {_size(context.machines.inventory())}"
    except BackendUnreachable as error:
        machines = f"{facts.machines}, which do not answer yet: {error}"
    found = [
        f"Fleetune {version('fleetune')}",
        f"  store     {facts.store}",
        f"  machines  {machines}",
        f"  address   {facts.url}{f' (drivers: {context.url})' if context.url != facts.url else ''}",
        f"  tokens    {_tokens(facts)}",
    ]
    found += [f"  secrets   {', '.join(sorted(context.secrets))}"] if context.secrets else []
    ahead_s = context.clock.now_s() - time.time()
    if ahead_s > _AHEAD_S:
        found.append(
            f"  clock     {ahead_s:.0f} s behind what the store has seen: time stands still until it is set right"
        )
    where = "" if facts.named or facts.url.endswith("127.0.0.1:8400") else f"FLEETUNE_URL={facts.url} "
    following = f"Next:  {where}fleetune submit job.yaml  |  {where}fleetune queue"
    return [*found, "", following, "Ctrl-C stops the server; jobs go on.", ""]


def _size(inventory: Inventory) -> str:
    nodes = inventory.nodes
    kinds = sorted({node.accelerator_type for node in nodes if node.accelerator_type})
    gpus = f"{inventory.gpus} GPUs" + (f" ({', '.join(kinds)})" if kinds else "")
    more = f"; may get {inventory.most_more} more" if inventory.growth.types else ""
    return f"{len(nodes)} {'node' if len(nodes) == 1 else 'nodes'}, {inventory.cpus} CPUs, {gpus}{more}"


def _tokens(facts: Facts) -> str:
    if not facts.tokens_needed:
        return "none are needed: all of your programs on this machine have full access, and no others"
    clear = "; they are sent unencrypted: keep to a network that you trust, or give --tls-cert and --tls-key"
    return f"needed (FLEETUNE_TOKEN){clear if facts.open_to_others and not facts.encrypted else ''}"
