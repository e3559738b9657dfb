"""Starts a Ray on this machine, with only the processes that a driver needs."""

from __future__ import annotations

import contextlib
import functools
import subprocess
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cluster.errors import CapacityError

_TRIES = 3


def start_local(options: Mapping[str, Any]) -> None:
    """Start a Ray on this machine, again if it does not come up. Raises CapacityError, or what `ray.init` raises.

    Ray waits 30 seconds for its start, which is too short while other programs keep all cores busy. It then raises a
    plain `Exception`. The processes of the failed start end with this process.
    """
    import ray

    for _ in range(_TRIES):
        try:
            with _lean_start():
                ray.init(**options)
        except Exception as error:
            if type(error) is not Exception:
                raise
            failed = error
            continue
        return
    said = f"Ray did not come up on this machine, in {_TRIES} tries of 30 s"
    raise CapacityError(f"{said}: the machine may be overloaded. Look at its load, and try again later") from failed


@contextlib.contextmanager
def _lean_start() -> Iterator[None]:
    """Change how `ray.init` starts a local Ray: no dashboard, autoscaler or log monitor, and other process groups.

    Each of the three takes about a second of a core, and Ray waits for the dashboard. `timeout` sends SIGTERM to a
    whole process group: it must reach this process and not Ray's, because a driver needs Ray until its workers have
    saved. Ray has no options for this.
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
    """Start a process in its own process group, and with an empty stdin: reading a terminal would suspend the group."""
    return start(*command, **{**options, "process_group": 0, "stdin": options.get("stdin") or subprocess.DEVNULL})
