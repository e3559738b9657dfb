"""Connections to Ray: to an existing cluster, or to one that is started here. Also reads what the cluster has."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.capacity.feasibility import check_can_ever_fit
from cluster.capacity.gang import Gang
from cluster.capacity.inventory import Inventory, Node
from cluster.errors import CapacityError, MachinesFailed
from cluster.imports import quick_imports
from cluster.job_environment import JobEnvironment
from cluster.ray.bundles import accelerator_of, bundle
from cluster.ray.local_start import start_local
from cluster.ray.sigterm import left_on_sigterm
from cluster.settings import add_to_environment, protocols_environment, ray_address, set_default
from cluster.text import many, one_line

# Logical CPUs in addition to the workers' own, for Ray Data's tasks and the Train controller.
SPARE_CPUS = 2
# How many CPU workers may share a core of the local machine: enough to try out a gang, without overloading it.
MOST_WORKERS_PER_CORE = 4
LISTENING_TIMEOUT_S = 10.0
PLACED_WITHIN_S = 300.0  # most seconds that previous users of the nodes may take to leave
_LOOK_S, _REMOVED_WITHIN_S = 2.0, 15.0
_SAY_FIRST_S, SAY_AGAIN_S = 10.0, 60.0
THIS_MACHINE = "local"
_PUT_BACK_S = 0.01  # how often the handler of SIGTERM is put back while Ray starts and ends
_IMPORTED_WITHIN_S = 10.0  # after an exception, which may have left a lock that the imports need
NODE_LABEL = "ray.io/node-id"  # a label that every node has
# A local Ray shares the machine's cores with the training. These settings switch off services that are not needed,
# and give workers the priority that they would have under torchrun.
QUIET_LOCAL_RAY = {
    "RAY_num_workers_soft_limit": "0",  # keep no idle workers
    "RAY_prestart_worker_first_driver": "0",  # start none in advance either; Ray would start one for each CPU
    "RAY_worker_niceness": "0",  # Ray's default is 15: with any other program on the machine, a training hardly runs
    "REPORTER_UPDATE_INTERVAL_MS": "60000",  # there is no dashboard to report to
}


@contextlib.contextmanager
def connected(
    address: str | None, gang: Gang | None, job_environment: JobEnvironment | None = None, ahead: Sequence[str] = ()
) -> Iterator[Inventory]:
    """Connect to the cluster at `address` (or RAY_ADDRESS), or start a Ray on this machine; disconnect at the end.

    Args:
        address: THIS_MACHINE starts a Ray regardless of RAY_ADDRESS.
        gang: the gang that will run there; None: only tasks, which use any free CPUs.
        job_environment: the environment that every worker process enters first.
        ahead: modules to import in a thread while Ray starts.

    Raises:
        CapacityError: the gang can never fit, or nothing answers at the address.
        MachinesFailed: a Ray of this machine does not come up.
        KeyboardInterrupt: SIGTERM has arrived while Ray started. Its handler was called.
    """
    _set_defaults()
    with quick_imports():
        import ray

    where = _where(address)
    options = _init_options(where, gang, job_environment or JobEnvironment())
    imports = threading.Thread(target=_import_all, args=(ahead,), name="imports", daemon=True)
    imports.start()
    handler = signal.getsignal(signal.SIGTERM) or signal.SIG_DFL
    try:
        try:
            _check_listening(where)
            with left_on_sigterm(handler) as check:
                if where is None:
                    start_local(options, check)
                else:
                    ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise CapacityError(_no_answer(where, error)) from error
        except SystemExit as error:  # from `left_on_sigterm`
            if callable(handler):
                handler(signal.SIGTERM, None)
            raise KeyboardInterrupt from error
        finally:
            _join(imports, handler, _IMPORTED_WITHIN_S if isinstance(sys.exception(), KeyboardInterrupt) else math.inf)
        inventory = snapshot()
        if gang is not None:
            check_can_ever_fit(gang, inventory)
        yield inventory
    finally:
        ending = threading.Thread(target=ray.shutdown, name="shutdown")
        ending.start()
        _join(ending, handler)


def _set_defaults() -> None:
    """Set what Ray reads from the environment, unless it is set already. Called before Ray is imported."""
    # Otherwise, a thread that calls Ray after `ray.shutdown` would start a new Ray.
    set_default("RAY_ENABLE_AUTO_CONNECT", "0")
    set_default("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    set_default("RAY_TRAIN_V2_ENABLED", "1")
    set_default("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # otherwise each printed line is written to a worker's log twice
    # The driver looks for leaving nodes itself (`leaving_nodes`). Ray's watcher would add an actor process to each
    # gang, whose imports take seconds of a core.
    set_default("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    set_default("RAY_CHDIR_TO_TRIAL_DIR", "0")  # workers stay in the directory of the job's own modules


def _init_options(where: str | None, gang: Gang | None, job_environment: JobEnvironment) -> dict[str, Any]:
    """Return the options of `ray.init`. Also sets defaults in the environment of a Ray that starts on this machine.

    Raises:
        CapacityError: this machine is too small for the gang.
    """
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "warning"}
    if where is None:
        if gang is not None:
            check_local(gang)
        for name, value in QUIET_LOCAL_RAY.items():
            if gang is not None or name != "RAY_num_workers_soft_limit":  # tasks need idle workers
                set_default(name, value)
        cpus = gang.num_workers * gang.cpus_per_worker + SPARE_CPUS if gang is not None else 0
        options |= {"address": "local", "num_cpus": max(cpus, os.cpu_count() or 1), "include_dashboard": False}
    else:
        options["address"] = where
    protocols = protocols_environment()
    if protocols or job_environment != JobEnvironment():
        options["runtime_env"] = {"worker_process_setup_hook": _entering(job_environment, protocols)}
    return options


def _join(thread: threading.Thread, handler: Any, within_s: float = math.inf) -> None:
    """Wait for a thread, and keep the handler of SIGTERM, which `ray.init` and `ray.shutdown` replace below Python."""
    lives, deadline = True, time.monotonic() + within_s
    while lives and time.monotonic() < deadline:
        lives = thread.is_alive()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
        thread.join(_PUT_BACK_S)


def is_own(address: str | None) -> bool:
    """Whether `connected` would start its own Ray for this address, and end it afterwards."""
    return _where(address) is None


def _where(address: str | None) -> str | None:
    return None if address == THIS_MACHINE else address or ray_address()


def _import_all(modules: Sequence[str]) -> None:
    with quick_imports():
        for module in modules:
            with contextlib.suppress(Exception):  # the module's user imports it again, and gets the error
                importlib.import_module(module)


def _entering(job_environment: JobEnvironment, environment: Mapping[str, str]) -> Callable[[], None]:
    """Return the function that workers call first. It is sent to them serialised.

    `environment` is part of this function, because variables of a runtime environment appear in Ray's logs and
    dashboard.
    """

    def enter_job_environment() -> None:
        add_to_environment(environment)
        with contextlib.suppress(OSError):  # the worker itself reports a node without the directory
            job_environment.enter()

    return enter_job_environment


def snapshot() -> Inventory:
    """Return the living nodes of the connected cluster, in logical resources."""
    import ray

    return Inventory(tuple(_node(entry) for entry in ray.nodes() if entry["Alive"]))


def free_now() -> Inventory:
    """Return the nodes with what is free at the moment, as far as the head knows."""
    from ray._private.state import available_resources_per_node  # there is no public API

    free: Mapping[str, Mapping[str, float]] = available_resources_per_node()
    left = ((node, free.get(node.node_id, {})) for node in snapshot().nodes)
    return Inventory(tuple(replace(node, cpus=int(of.get("CPU", 0)), gpus=int(of.get("GPU", 0))) for node, of in left))


@contextlib.contextmanager
def held_places(gang: Gang, nodes: Sequence[str], check: Callable[[], None]) -> Iterator[Any]:
    """Hold a placement group with room for each worker on its node, until the context ends.

    Args:
        nodes: id of the node of each worker.
        check: called while this waits; an exception from it ends the wait.

    Raises:
        MachinesFailed: a node is gone, or has no room.
    """
    each = {"CPU": float(gang.cpus_per_worker)} | ({"GPU": float(gang.gpus_per_worker)} if gang.gpus_per_worker else {})
    deadline = time.monotonic() + PLACED_WITHIN_S

    def look() -> None:
        check()
        check_alive(nodes, snapshot())
        if time.monotonic() > deadline:
            raise MachinesFailed(f"the nodes of this attempt had no room for {gang} in {PLACED_WITHIN_S:.0f} s")

    with _placed([each] * len(nodes), look, [{NODE_LABEL: node} for node in nodes]) as group:
        yield group


def wait_for_room(gang: Gang, say: Callable[[str], None], check: Callable[[], None]) -> None:
    """Wait until the cluster has room for the whole gang. Ray's autoscaler sees the demand meanwhile.

    Args:
        say: called with one line after waiting for ten seconds, and then every minute.
        check: called every two seconds; what it raises ends the wait.
    """
    each = bundle(gang.cpus_per_worker, gang.gpus_per_worker, gang.accelerator_type)
    began, say_after_s = time.monotonic(), _SAY_FIRST_S

    def look() -> None:
        nonlocal say_after_s
        check()
        waited_s = time.monotonic() - began
        if waited_s > say_after_s:
            say_after_s += SAY_AGAIN_S
            say(_format_waiting(gang, snapshot(), free_now(), waited_s))

    with _placed([each] * gang.num_workers, look):
        pass


@contextlib.contextmanager
def _placed(
    bundles: Sequence[Mapping[str, float]], look: Callable[[], None], selectors: list[dict[str, str]] | None = None
) -> Iterator[Any]:
    """Hold a placement group until the context ends. `look`: called every two seconds until there is room for it."""
    from ray.util.placement_group import placement_group, remove_placement_group

    group = placement_group(list(map(dict, bundles)), strategy="PACK", bundle_label_selector=selectors)
    try:
        while not group.wait(_LOOK_S):
            look()
        yield group
    finally:
        remove_placement_group(group)
        _wait_until_removed(group)


def _format_waiting(gang: Gang, nodes: Inventory, free: Inventory, waited_s: float) -> str:
    kind, there = ("GPU", free.gpus) if gang.gpus_per_worker else ("CPU", free.cpus)
    total = nodes.gpus if gang.gpus_per_worker else nodes.cpus
    return (
        f"waiting for room for {gang} ({waited_s:.0f} s so far): {there} of {total} {kind}s "
        f"on {many(len(nodes.nodes), 'node')} are free. Ctrl-C ends the wait"
    )


def keep_actors_here() -> None:
    """Start two actors of Ray Data on this process's node: statistics and coordinator, which a cluster has once.

    Ray Data would start the first one on the node where a data set is first read. A worker node would then never be
    idle again, and neither a drain nor the autoscaler would remove it. Ray Train waits for the second one before it
    starts workers, so starting it early saves time.
    """
    with contextlib.suppress(Exception):  # there is no public API; everything works without it, too
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )
        from ray.data._internal.stats import get_or_create_stats_actor

        get_or_create_stats_actor()
        get_or_create_autoscaling_coordinator()


def check_alive(nodes: Iterable[str], inventory: Inventory) -> None:
    """Check that all nodes exist, since Ray would wait forever for a missing one. Raises MachinesFailed."""
    gone = sorted(set(nodes) - {node.node_id for node in inventory.nodes})
    if gone:
        raise MachinesFailed(f"nodes of this attempt are not in the Ray cluster any more: {', '.join(gone)}")


def leaving_nodes() -> Mapping[str, float]:
    """Return nodes that Ray drains, with the latest time at which they go: seconds since 1970, or inf."""
    from ray._private.state import state  # there is no public API; Ray Train does the same

    try:
        found = state.get_draining_nodes()
    except Exception:  # the head does not answer; the caller asks again later
        return {}
    return {node: until_ms / 1000.0 if until_ms else math.inf for node, until_ms in found.items()}


def _wait_until_removed(group: Any) -> None:
    """Wait until Ray has removed a group, which is asynchronous, so that the next group finds room."""
    from ray.util.placement_group import placement_group_table

    deadline = time.monotonic() + _REMOVED_WITHIN_S
    while placement_group_table(group).get("state") not in (None, "REMOVED") and time.monotonic() < deadline:
        time.sleep(0.05)


def address_of(node_id: str) -> str:
    """Return the address at which other nodes reach a living node. The node's own guess may differ.

    Raises:
        MachinesFailed: the node is gone.
    """
    import ray

    for entry in ray.nodes():
        if entry["NodeID"] == node_id and entry["Alive"]:
            return str(entry["NodeManagerAddress"])
    raise MachinesFailed(f"node {node_id} is not in the Ray cluster any more")


def _node(entry: dict[str, Any]) -> Node:
    resources = entry["Resources"]
    return Node(
        node_id=entry["NodeID"],
        cpus=int(resources.get("CPU", 0)),
        gpus=int(resources.get("GPU", 0)),
        accelerator_type=accelerator_of(resources),
    )


def _check_listening(address: str | None) -> None:
    """Check that something listens at an address: Ray itself would wait for minutes.

    Raises:
        ConnectionError: nothing listens at host:port.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=LISTENING_TIMEOUT_S).close()
    except OSError as error:
        raise ConnectionError(str(error)) from error


def check_local(gang: Gang) -> None:
    """Check that a Ray of this machine can hold a gang of CPU workers. Raises CapacityError."""
    cores = os.cpu_count() or 1
    if gang.gpus_per_worker:
        return  # Ray counts the GPUs itself
    most = cores * MOST_WORKERS_PER_CORE // gang.cpus_per_worker
    if gang.num_workers > most:
        raise CapacityError(
            f"the spec asks for {gang}, but this machine has {cores} cores: the most that it would take on is "
            f"resources.num_workers: {most}. Give the --address of a larger cluster, or ask for fewer"
        )


def _no_answer(where: str | None, error: Exception) -> str:
    if where is None:
        return f"Ray did not start on this machine: {error}"
    return (
        f"no Ray cluster answers at {where}: {one_line(error)}. `--address auto` takes the cluster of this "
        "machine; with token authentication on, set RAY_AUTH_MODE=token and have its token in ~/.ray/auth_token"
    )
