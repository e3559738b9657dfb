"""A Ray of one's own has no process that nobody needs, and is started again if it does not come up in time."""

from __future__ import annotations

import pathlib
import shlex
import signal
import subprocess
import sys
from typing import Any

import pytest
import ray
from ray._private import services

from cluster.errors import MachinesFailed
from cluster.ray import no_agent
from cluster.ray.local_start import start_local
from cluster.ray.sigterm import left_on_sigterm

ROOT = pathlib.Path(__file__).parents[4]


def starts(monkeypatch: pytest.MonkeyPatch, *results: Exception | None) -> list[dict[str, Any]]:
    """Have `ray.init` fail with these errors, one after another; None: it succeeds. Returns the options of calls."""
    calls: list[dict[str, Any]] = []

    def init(**options: Any) -> None:
        calls.append(options)
        if (error := results[len(calls) - 1]) is not None:
            raise error

    monkeypatch.setattr(ray, "init", init)
    return calls


def test_a_ray_that_does_not_come_up_in_time_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray says this after 30 seconds, on a machine without a free core, in an error of no class of its own."""
    calls = starts(monkeypatch, Exception("The current node timed out during startup."), None)
    start_local({"num_cpus": 3})
    assert calls == [{"num_cpus": 3}, {"num_cpus": 3}]


def test_after_three_tries_the_machine_is_said_to_be_overloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    late = Exception("The current node timed out during startup.")
    calls = starts(monkeypatch, late, late, late)
    with pytest.raises(MachinesFailed, match=r"did not come up on this machine, in 3 tries.*overloaded") as caught:
        start_local({})
    assert len(calls) == 3 and caught.value.__cause__ is late


def test_a_sigterm_that_ray_has_dropped_is_heard_before_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python drops the exception of a handler that runs inside a destructor. Each try takes half a minute."""
    calls = list[dict[str, Any]]()

    class Destroyed:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def init(**options: Any) -> None:
        calls.append(options)
        Destroyed()
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), left_on_sigterm(before) as check:
        start_local({}, check)
    assert len(calls) == 1 and signal.getsignal(signal.SIGTERM) is before


def test_other_errors_are_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = starts(monkeypatch, ValueError("num_cpus must be positive"))
    with pytest.raises(ValueError, match="num_cpus"):
        start_local({})
    assert len(calls) == 1


START = """
import contextlib, os, pathlib, psutil, ray
from cluster.capacity.gang import Gang
from cluster.ray.connection import THIS_MACHINE, connected
with connected(THIS_MACHINE, Gang(1)):
    assert ray.get(ray.remote(lambda: 3).remote()) == 3
    processes = psutil.Process().children(recursive=True)
    assert os.getpgid(0) not in {os.getpgid(process.pid) for process in processes}, "a signal to the group reaches one"
    for process in processes:
        with contextlib.suppress(psutil.Error):
            print(*[pathlib.Path(word).name for word in process.cmdline()], sep="\\n")
"""


def test_its_processes_are_those_that_a_run_needs() -> None:
    """A later version of Ray may start others: each costs a second of a core before the first step."""
    done = subprocess.run([sys.executable, "-c", START], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    named = [word.strip() for word in done.stdout.splitlines()]
    assert {"gcs_server", "raylet", "no_agent.py"} <= set(named)
    assert not set(named) & {"dashboard.py", "monitor.py", "log_monitor.py", "agent.py", "ray::DashboardAgent"}
    assert len([word for word in named if word in ("ray::IDLE", "default_worker.py")]) <= 1, "of the one task"


def test_if_it_does_not_come_up_the_next_try_has_rays_own_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    given = "--dashboard_agent_command=python -u /ray/agent.py --node-id=5f '--session-dir=/tmp/a b/s' --minimal"

    def init() -> None:
        services.ConsolePopen(["raylet", given], stdout=None)
        raise Exception("The current node timed out during startup.")

    def started(words: list[str], **options: Any) -> None:
        assert options == {"stdout": None, "process_group": 0, "stdin": subprocess.DEVNULL}
        commands.append(words)

    monkeypatch.setattr(services, "ConsolePopen", started)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(MachinesFailed):
        start_local({})
    assert commands[1:] == [["raylet", given], ["raylet", given]]
    first = shlex.split(commands[0][1].partition("=")[2])
    assert first == [sys.executable, "-P", "-S", no_agent.__file__, "/tmp/a b/s", "5f"]
