"""A request to stop is answered at whatever moment it comes, by real drivers with a real Ray."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.drivers.link.messages import Instruction, Registered
from jobs.drivers.stop_request import STOPPED_EARLY
from jobs.run.checkpoints import committed_steps
from jobs.run.outcome import Status, read_outcome
from jobs.run.paths import JobPaths
from jobs.run.requests import ask_to_stop
from jobs.spec.load import dump_spec
from tests.support import tiny
from tests.support.drivers import driver, registered
from tests.support.gangs import LINGERING, ROOT
from tests.support.processes import processes_with, wait_for
from tests.support.wireserver import JOB, WireServer, wire_server

REASON = "stopped while no workers were training"
NOTHING = Registered(kind="finetune", spec={}, placement=(("n1", 1),), engine="local")
# Sends SIGTERM to this process at one moment, while Ray starts or while it ends.
SIGNALS_ITSELF = """
import ctypes, os, signal, sys, threading, time

def below_python():
    found = (ctypes.c_byte * 512)()  # struct sigaction begins with the handler
    ctypes.CDLL(None).sigaction(signal.SIGTERM, None, ctypes.byref(found))
    return ctypes.c_uint64.from_buffer(found).value

def starts():
    return signal.getsignal(signal.SIGTERM) is not arrived

def watch():
    while not starts():
        time.sleep(0.001)
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGTERM)

class Lost:  # receives the signal in its destructor, where the exception of a handler is lost
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        sum(range(100_000))  # a handler is called between two instructions

def arrived(*_):
    print("arrived", flush=True)

from cluster.capacity.gang import Gang
from cluster.ray.connection import connected
signal.signal(signal.SIGTERM, arrived)
put_back = signal.signal

def put_back_and_send(number, handler):
    was_reset = number == signal.SIGTERM and below_python() == 0
    put_back(number, handler)
    if was_reset:
        os.kill(os.getpid(), signal.SIGTERM)

if sys.argv[1] == "starts":
    threading.Thread(target=watch, daemon=True).start()
elif sys.argv[1] == "lost":
    import ray
    init = ray.init

    def init_and_lose(**options):
        Lost()
        return init(**options)

    ray.init = init_and_lose
else:  # a thread that samples would miss the moment while the cores are busy
    signal.signal = put_back_and_send
try:
    with connected("local", Gang(1, 1, 0)):
        print("connected", flush=True)
    print("ended", signal.getsignal(signal.SIGTERM) is arrived, below_python() != 0)
except KeyboardInterrupt:
    print("interrupted", signal.getsignal(signal.SIGTERM) is arrived, below_python() != 0)
"""


@pytest.mark.parametrize(("moment", "said"), [("starts", "interrupted"), ("lost", "interrupted"), ("ends", "ended")])
def test_the_handler_of_sigterm_is_called_also_while_ray_starts_and_ends(moment: str, said: str) -> None:
    mark = f"{JOB}-{moment}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FLEETUNE_TEST": mark}
    command = [sys.executable, "-c", SIGNALS_ITSELF, moment]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("arrived") == 1 and f"{said} True True" in done.stdout, done.stdout
    assert ("connected" in done.stdout) == (moment == "ends")
    wait_for(lambda: not processes_with(f"FLEETUNE_TEST={mark}"), "no process of Ray is left")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("moments")
    tiny.save_model(folder / "llama", "llama")
    tiny.write_text(folder / "text.jsonl", 400)
    return folder


@pytest.fixture
def server() -> Iterator[WireServer]:
    with wire_server(NOTHING) as server:
        yield server


def spec(workshop: pathlib.Path, data: pathlib.Path, **changes: Any) -> dict[str, Any]:
    one = {"resources__num_workers": 1, "train__max_steps": 5000} | changes
    made = tiny.spec_of(workshop / "runs", workshop / "llama", data, **one)
    found: dict[str, Any] = json.loads(dump_spec(made))
    return found


def outcome_after_order_at(
    server: WireServer, moment: str, code: int, by_file: bool = False, **environment: str
) -> tuple[JobPaths, Any]:
    """Order the stop as soon as the driver says this, and see how it ends. `by_file`: as `fleetune stop` does."""
    with driver(server, **environment) as running:
        running.wait_for(moment)
        if by_file:
            wait_for(lambda: server.newest.run is not None, "the driver has told its run")
            ask_to_stop(str(server.newest.run))
        else:
            server.order = Instruction.STOP
        assert running.ended() == code, running.output
        assert "Traceback" not in running.output
    wait_for(lambda: not processes_with(f"FLEETUNE_JOB={JOB}"), "nothing is left")
    assert server.newest.run is not None
    paths = JobPaths(server.newest.run)
    return paths, read_outcome(paths)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "phase", "by_file"),
    [("connecting to Ray", "connect", False), ("preparing", "prepare", False), ("preparing", "prepare", True)],
)
def test_an_order_to_stop_is_obeyed_before_the_workers_start(
    server: WireServer, workshop: pathlib.Path, tmp_path: pathlib.Path, moment: str, phase: str, by_file: bool
) -> None:
    tiny.write_text(tmp_path / "text.jsonl", 100_000 if moment == "preparing" else 400)
    server.registered = registered(spec(workshop, tmp_path / "text.jsonl"))
    # Mostly the order comes in the midst of a phase; one that is later finds the driver at the phase's end.
    lingers = {"PYTHONPATH": LINGERING, "FLEETUNE_TESTS_LINGERS": phase}
    paths, outcome = outcome_after_order_at(server, moment, 130, by_file, **lingers)
    assert outcome.status is Status.INTERRUPTED and outcome.reason == REASON, outcome
    assert committed_steps(paths) == []


@pytest.mark.slow
@pytest.mark.parametrize("by_file", [False, True])
def test_an_order_to_stop_ends_workers_that_still_load_the_model(
    server: WireServer, workshop: pathlib.Path, tmp_path: pathlib.Path, by_file: bool
) -> None:
    """They wait for ten minutes in the midst of it."""
    tiny.save_model(tmp_path / "bert", "bert")
    tiny.write_labelled(tmp_path / "labelled.jsonl", 60, 3)
    made = tiny.spec_of(
        workshop / "runs", tmp_path / "bert", tmp_path / "labelled.jsonl", classify=True, resources__num_workers=1,
        data__eval_fraction=0.3, eval__metrics=["tests.support.stuck_on_rank_0:zero"],
    )  # fmt: skip
    server.registered = registered(json.loads(dump_spec(made)))
    began = time.monotonic()
    # Not forked: the process that Ray ends is the worker itself.
    paths, outcome = outcome_after_order_at(server, "loading the model", 130, by_file, PYTHONPATH=str(ROOT))
    assert outcome.status is Status.INTERRUPTED and outcome.reason == STOPPED_EARLY, outcome
    assert committed_steps(paths) == [] and time.monotonic() - began < 300


@pytest.mark.slow
def test_an_order_to_stop_during_the_export_changes_nothing(server: WireServer, workshop: pathlib.Path) -> None:
    server.registered = registered(spec(workshop, workshop / "text.jsonl", train__max_steps=2))
    paths, outcome = outcome_after_order_at(server, "exporting the model", 0)
    assert outcome.status is Status.SUCCEEDED and pathlib.Path(paths.model).exists()


@pytest.mark.slow
def test_an_order_to_stop_between_two_trials_ends_the_sweep(server: WireServer, workshop: pathlib.Path) -> None:
    base = spec(workshop, workshop / "text.jsonl", train__max_steps=4, data__eval_fraction=0.2)
    space = {"learning_rate": {"min": 1e-5, "max": 1e-3, "log": True}}
    sweep = {
        "kind": "sweep", "name": "moments", "base": base, "space": space, "budget": {"trials": 500},
        "algorithm": "random", "scheduler": "none", "num_gangs": 1,
    }  # fmt: skip
    server.registered = NOTHING.model_copy(update={"kind": "sweep", "spec": sweep, "beat_every_s": 0.2})
    _, outcome = outcome_after_order_at(server, "trial 2", 130)
    assert outcome.status is Status.INTERRUPTED and outcome.reason.startswith("stopped on request after "), outcome
