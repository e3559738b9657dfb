"""Starts a Ray on this machine, with only the processes that a driver needs."""

from __future__ import annotations

import contextlib
import functools
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cluster.errors import MachinesFailed
from cluster.ray import no_agent

_TRIES = 3
_AGENT_COMMAND = "--dashboard_agent_command="  # an argument of the raylet


def start_local(options: Mapping[str, Any], check: Callable[[], None] = lambda: None) -> None:
    """Start a Ray on this machine, again if it does not come up. Raises MachinesFailed, or what `ray.init` raises.

    Ray waits 30 seconds for its start, which is too short while other programs keep all cores busy. It then raises a
    plain `Exception`. The processes of the failed start end with this process. From the second try on, Ray starts its
    own agent (see `no_agent`).

    Args:
        check: called before each further try; what it raises ends the start.
    """
    import ray

    for number in range(_TRIES):
        try:
            with _lean_start(with_agent=number > 0):
                ray.init(**options)
        except Exception as error:
            if type(error) is not Exception:
                raise
            failed = error
            check()
            continue
        return
    said = f"Ray did not come up on this machine, in {_TRIES} tries of 30 s"
    raise MachinesFailed(f"{said}: the machine may be overloaded. Look at its load, and try again later") from failed


@contextlib.contextmanager
def _lean_start(with_agent: bool) -> Iterator[None]:
    """Change how `ray.init` starts a local Ray: fewer processes, and in other process groups.

    Dashboard, autoscaler, log monitor and agent take about a second of a core each, and Ray waits for the dashboard.
    `no_agent.py` takes the place of the agent. `timeout` sends SIGTERM to a whole process group: it must reach this
    process and not Ray's, because a driver needs Ray until its workers have saved. Ray has no options for this.

    Args:
        with_agent: start Ray's own agent all the same.
    """
    from unittest import mock  # takes 60 ms of every command

    from ray._private import node, services, utils

    # Ray would import the packages of the dashboard into this process, to see whether they are there.
    absent = mock.patch.object(utils, "get_dashboard_dependency_error", return_value=ImportError("not needed"))
    starts = dict.fromkeys(("start_api_server", "start_monitor", "start_log_monitor"), mock.DEFAULT)
    started = functools.partial(_started_apart, services.ConsolePopen, with_agent)
    apart = mock.patch.object(services, "ConsolePopen", started)
    with absent, apart, mock.patch.multiple(node.Node, **starts):
        yield


def _started_apart(start: Callable[..., Any], with_agent: bool, command: Sequence[str], **options: Any) -> Any:
    """Start a process in its own process group, and with an empty stdin: reading a terminal would suspend the group."""
    words = list(command) if with_agent else [_without_agent(word) for word in command]
    return start(words, **{**options, "process_group": 0, "stdin": options.get("stdin") or subprocess.DEVNULL})


def _without_agent(word: str) -> str:
    """Return a word of a command. In the word that tells the raylet how to start its agent, name `no_agent.py`."""
    if not word.startswith(_AGENT_COMMAND):
        return word
    given = dict(one.removeprefix("--").partition("=")[::2] for one in shlex.split(word.removeprefix(_AGENT_COMMAND)))
    words = [sys.executable, "-P", "-S", no_agent.__file__, given["session-dir"], given["node-id"]]
    return _AGENT_COMMAND + subprocess.list2cmdline(words)
