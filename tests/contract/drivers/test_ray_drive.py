"""Drivers of queued jobs on a Ray cluster of several nodes: everything runs where the lease says, and nothing stays."""

from __future__ import annotations

import json
import pathlib
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.drivers.link.messages import Instruction, Registered
from jobs.spec.load import dump_spec
from tests.support import tiny
from tests.support.drivers import driver, registered
from tests.support.gangs import FORKED
from tests.support.processes import processes_with, wait_for
from tests.support.raycluster import ray_head
from tests.support.raynodes import NODE_NAME, Nodes, left_on_ray, ray_nodes
from tests.support.wireserver import JOB, WireServer, wire_server

pytestmark = pytest.mark.slow

NOTHING = Registered(kind="command", spec={}, placement=(("n1", 1),), engine="ray")
SECRET = "a-planted-value-51e"
SAYS_WHERE = f"""
import os
names = ("{NODE_NAME}", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "NODE_RANK", "CUDA_VISIBLE_DEVICES", "MASTER_ADDR")
print(*(os.environ[name] for name in names), "key", os.environ["KEY"], os.environ.get("FLEETUNE_DRIVER_TOKEN"))
"""
WAITS = "import os, time; print('up', flush=True); time.sleep(0 if os.environ['RANK'] == '9' else 1000)"
FAILS = """
import os, sys, time
if os.environ["RANK"] == "0":
    open(UP, "w").close()
    time.sleep(1000)
while not os.path.exists(UP):
    time.sleep(0.05)
sys.exit(9)
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with (
        ray_head(num_cpus=2, PYTHONPATH=FORKED) as head,
        ray_nodes(head, "a", "b", num_cpus=3, PYTHONPATH=FORKED) as nodes,
    ):
        yield nodes


@pytest.fixture
def server() -> Iterator[WireServer]:
    with wire_server(NOTHING) as server:
        yield server


def on(nodes: Nodes, *placement: tuple[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple((nodes.ids[name], workers) for name, workers in placement)


def command(program: str, num_workers: int, **fields: Any) -> dict[str, Any]:
    words = [sys.executable, "-c", program]
    return {"kind": "command", "command": words, "resources": {"num_workers": num_workers}, **fields}


def nothing_stays(nodes: Nodes) -> None:
    try:
        wait_for(lambda: not left_on_ray(nodes.head), "nothing is left on Ray", 120)
    finally:
        assert not left_on_ray(nodes.head)
    wait_for(lambda: not processes_with(f"FLEETUNE_JOB={JOB}"), "no process is left")


def content_of(file: pathlib.Path) -> bytes:
    """Nothing if it is gone: Ray's dashboard replaces one of its files every few seconds."""
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def test_processes_run_on_the_nodes_of_their_lease_in_its_order(nodes: Nodes, server: WireServer) -> None:
    """Of a command; with their ranks and secrets, none of which Ray writes down."""
    spec = command(SAYS_WHERE, 3, queue={"secrets": ["KEY"]})
    placement = on(nodes, ("b", 2), ("a", 1))
    server.registered = registered(spec, engine="ray", placement=placement, secrets={"KEY": SECRET})
    with driver(server, **nodes.environment()) as running:
        assert running.ended() == 0, running.output
    wanted = [("b", 0, 0, 2, 0), ("b", 1, 1, 2, 0), ("a", 2, 0, 1, 1)]
    for node, rank, local, local_world, node_rank in wanted:
        line = rf"\[{rank}\] {node} {rank} {local} {local_world} {node_rank}  [0-9.]+ key \*\*\* None"
        assert re.search(f"^{line}$", running.output, re.MULTILINE), running.output
    nothing_stays(nodes)
    logs = [path for path in (nodes.head.temp / "ray").rglob("*") if path.is_file() and not path.is_symlink()]
    assert logs and not [path for path in logs if SECRET.encode() in content_of(path)]


def test_when_one_fails_on_one_node_those_on_others_are_ended(
    nodes: Nodes, server: WireServer, tmp_path: pathlib.Path
) -> None:
    spec = command(f"UP = {str(tmp_path / 'up')!r}\n{FAILS}", 2)
    server.registered = registered(spec, engine="ray", placement=on(nodes, ("a", 1), ("b", 1)))
    with driver(server, **nodes.environment()) as running:
        assert running.ended() == 9, running.output
    assert "process 1 ended with exit code 9; SIGTERM to the process" in running.output
    nothing_stays(nodes)


def test_a_program_that_is_not_there_is_bad_input_and_starts_nowhere(nodes: Nodes, server: WireServer) -> None:
    spec = {"kind": "command", "command": ["no-such-program-here"], "resources": {"num_workers": 2}}
    server.registered = registered(spec, engine="ray", placement=on(nodes, ("a", 1), ("b", 1)))
    with driver(server, **nodes.environment()) as running:
        assert running.ended() == 2, running.output
    assert "error: there is no program no-such-program-here on the PATH of" in running.output
    nothing_stays(nodes)


@pytest.mark.parametrize("way", ["sigterm", "stop", "leave", "kill"])
def test_however_a_driver_ends_nothing_of_its_gang_stays(nodes: Nodes, server: WireServer, way: str) -> None:
    server.registered = registered(command(WAITS, 2), engine="ray", placement=on(nodes, ("a", 1), ("b", 1)))
    with driver(server, **nodes.environment()) as running:
        running.wait_for("[0] up")
        running.wait_for("[1] up")
        if way in ("sigterm", "kill"):
            running.process.send_signal(signal.SIGTERM if way == "sigterm" else signal.SIGKILL)
        else:
            server.order = Instruction.STOP if way == "stop" else Instruction.LEAVE
        assert running.ended() == (-signal.SIGKILL if way == "kill" else 130), running.output
        nothing_stays(nodes)


def test_a_gang_trains_on_the_nodes_of_its_lease_with_its_secrets_and_its_working_dir(
    nodes: Nodes, server: WireServer, tmp_path: pathlib.Path
) -> None:
    """The only training on a lease of several nodes with code of the user's own."""
    tiny.save_model(tmp_path / "llama", "llama")
    tiny.write_text(tmp_path / "text.jsonl", 200)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "metrics_of_mine.py").write_text(
        "import os\nfrom pathlib import Path\n"
        "def where(given):\n"
        f"    name, secret = os.environ['{NODE_NAME}'], os.environ['PLANTED']\n"
        "    Path(f'{os.environ[\"RANK\"]}.txt').write_text(f'{name} {len(secret)} {os.getcwd()}')\n"
        "    return 1.0\n"
    )
    made = tiny.spec_of(
        tmp_path / "runs", tmp_path / "llama", tmp_path / "text.jsonl", train__max_steps=3, data__eval_fraction=0.3,
        eval__metrics=["metrics_of_mine:where"], working_dir=str(mine),
    )  # fmt: skip
    placement = on(nodes, ("b", 1), ("a", 1))
    server.registered = registered(
        json.loads(dump_spec(made)), engine="ray", placement=placement, secrets={"PLANTED": SECRET}
    )
    with driver(server, **nodes.environment()) as running:
        assert running.ended() == 0, running.output
    said = {path.stem: path.read_text() for path in mine.glob("*.txt")}
    assert {rank: text.split()[0] for rank, text in said.items()}.items() <= {"0": "b", "1": "a"}.items() and said, said
    assert {text.split()[1] for text in said.values()} == {str(len(SECRET))}
    assert {text.split()[2] for text in said.values()} == {str(mine)}
    nothing_stays(nodes)
