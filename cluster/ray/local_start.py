"""Starts a Ray on this machine, with the processes that a driver needs."""

from __future__ import annotations

import contextlib
import functools
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cluster.errors import CapacityError

_STARTS = 3  # tries


def start_local(options: Mapping[str, Any]) -> None:
    """Start a Ray on this machine, again if it does not come up. Raises CapacityError, or what `ray.init` raises.

    Ray waits 30 seconds for its start, which is too short while other programs keep all cores busy. It then raises a
    plain `Exception`. The processes of the failed start end with this process.
    """
    import ray

    for _ in range(_STARTS):
        try:
            with _needed_processes_apart():
                ray.init(**options)
        except Exception as error:
            if type(error) is not Exception:
                raise
            failed = error
            continue
        return
    said = f"Ray did not come up on this machine, in {_STARTS} tries of 30 s"
    raise CapacityError(f"{said}: the machine may be overloaded. Look at its load, and try again later") from failed


@contextlib.contextmanager
def _needed_processes_apart() -> Iterator[None]:
    """Let a local Ray start without dashboard, autoscaler and forwarding of logs, in process groups of its own.

    Each of these would take about a second of a core, and Ray waits for the dashboard. Signals that `timeout` sends to
    a process group should reach this process alone, which needs Ray to end in order. Ray has no options for this.
    """
    from unittest import mock  # takes 60 ms of every command

    from ray._private import node, services, utils

    # Ray would import the packages of the dashboard into this process, to see whether they are there.
    absent = mock.patch.object(utils, "get_dashboard_dependency_error", return_value=ImportError("not needed"))
    starts = dict.fromkeys(("start_api_server", "start_monitor", "start_log_monitor"), mock.DEFAULT)
    apart = mock.patch.object(services, "ConsolePopen", functools.partial(_started_apart, services.ConsolePopen))
    with absent, apart, mock.patch.multiple(node.Node, **starts):
        yield


def _started_apart(start: Callable[..., Any], *command: Any, **options: Any) -> Any:
    """Start a process in a group of its own. It has no input: reading the terminal would suspend its group."""
    return start(*command, **{**options, "process_group": 0, "stdin": options.get("stdin") or subprocess.DEVNULL})
