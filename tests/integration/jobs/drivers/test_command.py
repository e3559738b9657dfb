"""A job of kind command on this machine: real processes, under a real driver, with a small server."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import stat
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.drivers.command.member import MOST_HELD_BYTES, Member
from jobs.drivers.link.messages import Instruction, Registered
from tests.support.drivers import driver, registered, rss_mb
from tests.support.processes import command_of, originals, processes_with, wait_for
from tests.support.wireserver import JOB, TOKEN, WireServer, wire_server

NOTHING = Registered(kind="command", spec={}, placement=(("n1", 1),), engine="local")
SECRET = "a-planted-value-7f3"
SAYS_WHERE = """
import os
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "FLEETUNE_JOB",
         "FLEETUNE_ATTEMPT", "FLEETUNE_PARENT_RUN", "CUDA_VISIBLE_DEVICES", "MINE")
print(" ".join(f"{name}={os.environ.get(name)}" for name in names), int(os.environ["MASTER_PORT"]) > 0)
print("key", os.environ["KEY"], "token", os.environ.get("FLEETUNE_DRIVER_TOKEN"), os.getcwd(), flush=True)
"""
FAILS = """
import os, sys, time
open("up" + os.environ["RANK"], "w").close()
while os.environ["RANK"] != "1" or not all(os.path.exists("up" + rank) for rank in "02"):
    time.sleep(0.05)
sys.exit(7)
"""
IGNORES = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(1000)"
)
FAILS_BESIDE_ONE_THAT_IGNORES = """
import os, signal, sys, time
if os.environ["RANK"] == "1":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    open("ignores", "w").close()
    time.sleep(1000)
while not os.path.exists("ignores"):
    time.sleep(0.05)
sys.exit(3)
"""
LISTENS = """
import os, signal, sys, time
def stop(number, frame):
    print("saved", flush=True)
    sys.exit(5)
signal.signal(signal.SIGTERM, stop)
print("up", flush=True)
while True:
    time.sleep(0.05)
"""
LEAVES_ORPHANS = """
import os, subprocess, sys, time
subprocess.Popen(["sleep", "1000"], start_new_session=True)
subprocess.Popen(["sh", "-c", "sleep 1000 & sleep 1000"])
print("up", flush=True)
"""


def command(program: str, num_workers: int = 1, **fields: Any) -> dict[str, Any]:
    resources = {"num_workers": num_workers}
    return {"kind": "command", "command": [sys.executable, "-c", program], "resources": resources, **fields}


@pytest.fixture
def server() -> Iterator[WireServer]:
    with wire_server(NOTHING) as server:
        yield server


def nothing_is_left() -> bool:
    return not processes_with(f"FLEETUNE_JOB={JOB}")


def test_two_processes_are_told_their_places_and_their_lines_are_told_apart(
    server: WireServer, tmp_path: pathlib.Path
) -> None:
    spec = command(SAYS_WHERE, 2, env={"MINE": "yes"}, working_dir=str(tmp_path), queue={"secrets": ["KEY"]})
    server.registered = registered(spec, secrets={"KEY": SECRET}, parents={"first": "/runs/first"})
    with driver(server) as running:
        assert running.ended() == 0, running.output
    for rank in (0, 1):
        wanted = (
            f"[{rank}] RANK={rank} WORLD_SIZE=2 LOCAL_RANK={rank} LOCAL_WORLD_SIZE=2 NODE_RANK=0 MASTER_ADDR=127.0.0.1 "
            f"FLEETUNE_JOB={JOB} FLEETUNE_ATTEMPT=1 FLEETUNE_PARENT_RUN=/runs/first CUDA_VISIBLE_DEVICES= MINE=yes True"
        )
        assert wanted in running.lines
        assert f"[{rank}] key *** token None {tmp_path}" in running.lines
    assert SECRET not in running.output and TOKEN not in running.output


def test_when_one_fails_the_others_are_ended_and_the_driver_ends_as_it_did(
    server: WireServer, tmp_path: pathlib.Path
) -> None:
    server.registered = registered(command(FAILS, 3, working_dir=str(tmp_path)))
    with driver(server) as running:
        assert running.ended() == 7, running.output
        assert nothing_is_left()
    assert "process 1 ended with exit code 7; SIGTERM to 2 processes" in running.output


@pytest.mark.parametrize("code", [2, 75, 77, 130])
def test_codes_with_a_meaning_for_the_queue_are_not_handed_on(server: WireServer, code: int) -> None:
    server.registered = registered(command(f"import sys; sys.exit({code})"))
    with driver(server) as running:
        assert running.ended() == 1
    assert f"process 0 ended with exit code {code}" in running.output


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"command": ["no-such-program-here"]}, "there is no program no-such-program-here on the PATH of"),
        ({"command": ["./tool"]}, "tool is not a file on"),
        ({"command": ["./plain"]}, "plain may not be executed on"),
        ({"command": ["./broken"]}, "./broken cannot be started on .*: Exec format error"),
        (
            {"command": ["true"], "working_dir": "/no/such/directory"},
            "working_dir /no/such/directory is not a directory",
        ),
        (
            {"command": ["true", "x" * 99_000], "env": {f"A{n}": "y" * 99_000 for n in range(40)}},
            "rgument list too long",
        ),
    ],
)
def test_a_program_that_cannot_be_started_is_bad_input_and_told_in_one_line(
    server: WireServer, tmp_path: pathlib.Path, fields: dict[str, Any], said: str
) -> None:
    for name, mode in (("plain", 0o644), ("broken", 0o755)):
        (tmp_path / name).write_text("\x01\x02 no program")
        (tmp_path / name).chmod(mode)
    spec = {"kind": "command", "working_dir": str(tmp_path), "resources": {"num_workers": 2}, **fields}
    server.registered = registered(spec)
    with driver(server) as running:
        assert running.ended() == 2, running.output
    assert re.search(f"error: .*{said}", running.output) and "Traceback" not in running.output


def test_sigterm_reaches_the_programs_once_and_they_may_save(server: WireServer) -> None:
    server.registered = registered(command(LISTENS, 2))
    with driver(server) as running:
        running.wait_for("[0] up")
        running.wait_for("[1] up")
        server.order = Instruction.STOP
        running.process.send_signal(signal.SIGTERM)
        assert running.ended() == 130, running.output
    assert running.output.count("saved") == 2 and nothing_is_left()


def test_leave_ends_everything_at_once(server: WireServer) -> None:
    server.registered = registered(command(IGNORES, 2))
    with driver(server) as running:
        running.wait_for("[1] up")
        server.order = Instruction.LEAVE
        assert running.ended() == 130
        wait_for(nothing_is_left, "all have ended")


def test_a_driver_that_is_killed_takes_everything_with_it(server: WireServer) -> None:
    server.registered = registered(command(IGNORES, 2))
    with driver(server) as running:
        running.wait_for("[1] up")
        running.process.kill()
        wait_for(nothing_is_left, "all have ended")


@pytest.mark.slow
def test_a_program_that_does_not_listen_is_killed_after_its_grace(server: WireServer, tmp_path: pathlib.Path) -> None:
    server.registered = registered(command(FAILS_BESIDE_ONE_THAT_IGNORES, 2, working_dir=str(tmp_path)))
    with driver(server) as running:
        assert running.ended() == 3, running.output
        assert nothing_is_left()
    assert "SIGKILL to the process" in running.output


def test_what_a_program_leaves_behind_ends_with_it(server: WireServer) -> None:
    server.registered = registered(command(LEAVES_ORPHANS))
    with driver(server) as running:
        assert running.ended() == 0, running.output
        assert nothing_is_left()


def test_a_flood_fills_neither_memory_nor_the_time_of_others(server: WireServer) -> None:
    program = "import sys\nfor n in range(400): sys.stdout.write('x' * 250_000)\nprint('end')"
    server.registered = registered(command(program))
    with driver(server) as running:
        most = 0.0
        while running.process.poll() is None:
            try:
                most = max(most, rss_mb(running.process.pid))
            except (FileNotFoundError, StopIteration):
                break
            time.sleep(0.02)
        assert running.ended() == 0
    assert most < 80 and sum(map(len, running.lines)) > 100_000_000
    assert max(map(len, running.lines)) < 9000


def test_a_member_that_nobody_reads_waits_and_holds_little() -> None:
    member = Member()
    program = "import sys\nwhile True: sys.stdout.write('x' * 100_000)"
    assert member.start([sys.executable, "-c", program], dict(os.environ), None) is None
    wait_for(lambda: len(member._output) >= MOST_HELD_BYTES, "it is full")
    assert len(member._output) <= MOST_HELD_BYTES + (1 << 16)
    assert member.read(1.0)[1] is None
    member.close()


def test_a_member_says_how_it_ended_and_hands_on_the_last_of_its_output() -> None:
    for program, code in (("print('x'); import os; os.kill(os.getpid(), 11)", -11), ("print('x'); exit(9)", 9)):
        member = Member()
        assert member.start([sys.executable, "-c", program], dict(os.environ), None) is None
        output, ended = b"", None
        while ended is None:
            more, ended = member.read(5.0)
            output += more
        assert (output, ended) == (b"x\n", code)
        member.close()


def test_a_closed_member_leaves_nothing(tmp_path: pathlib.Path) -> None:
    member, mark = Member(), f"FLEETUNE_TEST={tmp_path}"
    script = tmp_path / "tree.sh"
    script.write_text("#!/bin/sh\ntrap '' TERM\n(setsid sleep 1000 &)\nsleep 1000 & sleep 1000\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    environment = {**os.environ, "FLEETUNE_TEST": str(tmp_path)}
    assert member.start(["./tree.sh"], environment, str(tmp_path)) is None
    wait_for(lambda: len(processes_with(mark)) >= 5, "its tree has grown")
    member.close()
    assert not processes_with(mark)


def test_a_program_whose_guard_is_killed_is_killed_too_with_what_it_has_started(tmp_path: pathlib.Path) -> None:
    member, mark = Member(), f"FLEETUNE_TEST={tmp_path}"
    environment = {**os.environ, "FLEETUNE_TEST": str(tmp_path)}
    assert member.start(["sh", "-c", "(setsid sleep 1000 &) ; sleep 1000 & wait"], environment, None) is None
    wait_for(lambda: len(processes_with(mark)) >= 4, "its tree has grown")
    (guard,) = originals(pid for pid in processes_with(mark) if b"guard.py" in command_of(pid))
    os.kill(guard, signal.SIGKILL)
    assert member.read(60.0) == (b"", -signal.SIGKILL)
    member.close()
    assert not processes_with(mark)
