"""What holds for every backend: one suite for the fake one, for the local one, and for Ray's jobs."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cluster.backend import MAX_OUTPUT_BYTES, Launch, Phase, Submission
from cluster.capacity.inventory import Node
from cluster.errors import BackendUnreachable, Fenced, LaunchRefused
from tests.support.backends import Machines, Program, machines
from tests.support.gangs import FORKED
from tests.support.processes import process_lives, wait_for
from tests.support.raycluster import RayHead, ray_head

RAY = pytest.param("ray", marks=pytest.mark.slow)  # a minute in all
FOREVER = Program(forever=True)
KILLS = {"served": 6, "local": 12, "ray": 2}


@pytest.fixture(scope="module")
def head() -> Iterator[RayHead]:
    with ray_head(PYTHONPATH=FORKED) as head:
        yield head


@pytest.fixture
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """The backend of the kind that the test is run for."""
    head = request.getfixturevalue("head") if request.param == "ray" else None
    with machines(request.param, tmp_path_factory.mktemp(request.param), head) as made:
        yield made


def on(*kinds: object) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("opened", kinds, indirect=True)


on_all = on("fake", "served", "local", RAY)
on_shared = on("served", "local", RAY)  # those that several processes can use
on_real = on("local", RAY)  # those that start real processes


def elsewhere(state: Submission | None) -> Submission | None:
    """Without the node, which only some backends know."""
    return None if state is None else replace(state, node_id=None)


@on_all
def test_a_name_is_taken_once_and_for_ever(opened: Machines) -> None:
    launch = opened.started(opened.launch("a"))
    assert elsewhere(opened.ended(launch)) == Submission(launch.submission, Phase.SUCCEEDED, 0)
    for backend in (opened.backend, opened.world.open()):
        backend.start(launch, opened.fence)
        backend.start(Launch(launch.submission, ("no-such-program",)), opened.fence)
    assert opened.ended(launch).phase is Phase.SUCCEEDED
    assert opened.starts(launch) == 1


@on_shared
def test_of_processes_that_start_the_same_names_at_once_one_does(opened: Machines) -> None:
    launches = [opened.launch(f"n{number}") for number in range(3)]
    callers = [opened.starter(launches) for _ in range(3)]
    for caller in callers:
        caller.go()
    assert all(caller.is_done() for caller in callers)
    assert [opened.ended(launch).phase for launch in launches] == [Phase.SUCCEEDED] * 3
    assert [opened.starts(launch) for launch in launches] == [1, 1, 1]


@on_shared
def test_nothing_is_lost_or_runs_twice_when_callers_are_killed_at_any_moment(opened: Machines) -> None:
    """Of each backend that several processes share."""
    chance = random.Random(7)
    for turn in range(KILLS[opened.kind]):
        launches = [opened.launch(f"k{turn}-{number}") for number in range(3)]
        caller = opened.starter(launches)
        caller.go()
        caller.reaches(launches[1])
        opened.wait_for(iter([False] * chance.randrange(5) + [True]).__next__, "the moment has come")
        caller.kill()
        taken = {one.submission for one in opened.backend.submissions()}
        for launch in launches:  # another one goes on where that one has been
            opened.backend.start(launch, opened.fence)
        ends = [opened.ended(launch) for launch in launches]
        assert ends[0].phase is Phase.SUCCEEDED, "its start had returned"
        for launch, end in zip(launches, ends, strict=True):
            lost = end.phase is Phase.LOST
            assert end.phase is Phase.SUCCEEDED or (lost and launch.submission in taken)
            assert opened.starts(launch) == (0 if lost else 1)


@on_all
def test_the_exit_code_is_known_also_to_a_caller_that_did_not_start_it(opened: Machines) -> None:
    fine, broken = opened.started(opened.launch("fine")), opened.started(opened.launch("broken", Program(exit_code=3)))
    opened.backend = opened.world.open()
    assert elsewhere(opened.ended(fine)) == Submission(fine.submission, Phase.SUCCEEDED, 0)
    assert elsewhere(opened.ended(broken)) == Submission(broken.submission, Phase.FAILED, 3)


@on_all
def test_a_program_is_running_until_it_is_asked_to_end(opened: Machines) -> None:
    launch = opened.started(opened.launch("a", FOREVER))
    opened.wait_for(lambda: elsewhere(opened.state(launch)) == Submission(launch.submission, Phase.RUNNING), "it runs")
    opened.backend.stop(launch.submission)
    assert opened.ended(launch).phase is Phase.STOPPED
    opened.backend.stop(launch.submission, hard=True)
    opened.backend.start(launch, opened.fence)
    assert opened.ended(launch).phase is Phase.STOPPED and opened.starts(launch) == 1


@on_all
def test_a_program_that_does_not_listen_ends_when_it_is_ended_hard(opened: Machines) -> None:
    launch = opened.started(opened.launch("deaf", Program(forever=True, listens=False)))
    opened.backend.stop(launch.submission)
    opened.backend.stop(launch.submission)
    for _ in range(10):
        opened.world.pass_time()
    opened.wait_for(lambda: (state := opened.state(launch)) and state.phase is not Phase.PENDING, "it is said to run")
    state = opened.state(launch)
    assert state is not None and state.phase is Phase.RUNNING
    opened.backend.stop(launch.submission, hard=True)
    assert opened.ended(launch).phase is Phase.STOPPED


@on_real
def test_what_a_program_has_started_ends_with_it_when_it_is_ended_hard(opened: Machines) -> None:
    launch = opened.started(opened.launch("a", Program(forever=True, listens=False, escapes=True)))
    escaped = opened.escaped(launch)
    opened.backend.stop(launch.submission, hard=True)
    assert opened.ended(launch).phase is Phase.STOPPED
    opened.wait_for(lambda: not process_lives(escaped), "what it started has ended")


@on_all
def test_stops_of_what_is_not_known_are_left_alone(opened: Machines) -> None:
    launch = opened.launch("never-started")
    opened.backend.stop(launch.submission)
    opened.backend.stop(launch.submission, hard=True)
    opened.backend.forget([launch.submission])
    assert opened.backend.output(launch.submission) == b""
    assert opened.backend.output_end(launch.submission, 9) == (0, b"")
    assert opened.state(launch) is None


@on_all
def test_output_is_read_from_a_byte_on(opened: Machines) -> None:
    launch = opened.started(opened.launch("a", Program(output=b"one\ntwo \xff\x00\n")))
    opened.ended(launch)
    opened.wait_for(lambda: opened.backend.output(launch.submission), "its output is there")
    read = opened.backend.output
    assert read(launch.submission) == b"one\ntwo \xff\x00\n"
    assert read(launch.submission, 4) == b"two \xff\x00\n"
    assert read(launch.submission, 11) == read(launch.submission, 500) == read(launch.submission, 2**63 - 1) == b""
    end = opened.backend.output_end
    assert end(launch.submission, 3) == (8, b"\xff\x00\n") and end(launch.submission, 500) == (
        0,
        read(launch.submission),
    )


@on_real
def test_much_output_comes_in_pieces(opened: Machines) -> None:
    launch = opened.command("a", "sh", "-c", "head -c 1500000 /dev/zero; echo end >&2")
    opened.backend.start(launch, opened.fence)
    opened.ended(launch)
    opened.wait_for(lambda: opened.backend.output(launch.submission, 1_500_000) == b"end\n", "its output is there")
    first = opened.backend.output(launch.submission)
    assert first == b"\0" * MAX_OUTPUT_BYTES
    assert opened.backend.output(launch.submission, len(first)) == b"\0" * (1_500_000 - len(first)) + b"end\n"


@on_all
@pytest.mark.parametrize("name", ["no-such-program", "./not-here", os.devnull])
def test_a_program_that_cannot_be_started_is_refused_or_fails(opened: Machines, name: str) -> None:
    launch = opened.command("a", name, "x")
    opened.world.refuse(launch.submission)
    try:
        opened.backend.start(launch, opened.fence)
    except LaunchRefused:
        assert opened.state(launch) is None
        assert opened.kind != "ray"
    else:
        end = opened.ended(launch)
        assert end.phase is Phase.FAILED and end.exit_code in (126, 127)


@on_all
def test_what_no_backend_takes_is_refused_and_leaves_nothing(opened: Machines) -> None:
    for launch in (
        Launch("", ("true",)),
        Launch("../a", ("true",)),
        Launch("-a", ("true",)),
        Launch("a" * 201, ("true",)),
        Launch("a b", ("true",)),
        Launch("a", ()),
        Launch("a", ("tr\0ue",)),
        Launch("a", ("true",), {"A=B": "c"}),
    ):
        before = opened.backend.submissions()
        with pytest.raises(LaunchRefused):
            opened.backend.start(launch, opened.fence)
        assert opened.backend.submissions() == before


@on_all
def test_an_older_caller_is_fenced_off_once_a_newer_one_has_been_there(opened: Machines) -> None:
    first, second, third = (opened.launch(name, FOREVER) for name in ("first", "second", "third"))
    older, newer = opened.world.open(), opened.world.open()
    older.start(first, opened.fence)
    newer.start(first, opened.fence + 2)
    for launch in (first, second):
        with pytest.raises(Fenced):
            older.start(launch, opened.fence + 1)
    newer.start(third, opened.fence + 2)
    assert opened.state(second) is None and opened.state(third) is not None


@on_all
def test_a_newer_caller_may_say_so_before_it_starts_anything(opened: Machines) -> None:
    older, newer, launch = opened.world.open(), opened.world.open(), opened.launch("late", FOREVER)
    newer.fence(opened.fence + 1)
    with pytest.raises(Fenced):
        older.start(launch, opened.fence)
    with pytest.raises(Fenced):
        older.fence(opened.fence)
    newer.fence(opened.fence + 1)
    assert opened.state(launch) is None


@on_all
def test_what_is_forgotten_is_not_listed_and_its_name_stays_taken(opened: Machines) -> None:
    done, runs = opened.started(opened.launch("done")), opened.started(opened.launch("runs", FOREVER))
    opened.ended(done)
    opened.backend.forget([done.submission, runs.submission])
    assert opened.state(done) is None
    assert opened.state(runs) is not None, "one that has not ended is not forgotten"
    opened.backend.start(done, opened.fence)
    assert opened.state(done) is None and opened.starts(done) == 1


@on_all
def test_machines_that_do_not_answer_are_told_from_those_that_know_nothing(opened: Machines) -> None:
    launch = opened.started(opened.launch("a", FOREVER))
    # It runs before its supervisor has said so, which it could not say meanwhile.
    opened.wait_for(lambda: (state := opened.state(launch)) and state.phase is Phase.RUNNING, "it is said to run")
    with opened.world.unreachable() as backend:
        for call in (
            backend.inventory,
            backend.submissions,
            lambda: backend.start(opened.launch("b"), opened.fence),
            lambda: backend.stop(launch.submission),
            lambda: backend.forget([launch.submission]),
            lambda: backend.output(launch.submission),
        ):
            with pytest.raises(BackendUnreachable):
                call()
    state = opened.state(launch)  # nothing that was asked meanwhile was done
    assert state is not None and state.phase is Phase.RUNNING


@on_all
def test_the_inventory_has_nodes_with_names_and_numbers(opened: Machines) -> None:
    def is_free(node: Node) -> bool:
        return node.usable and node.foreign_cpus == node.foreign_gpus == 0

    opened.wait_for(lambda: all(map(is_free, opened.backend.inventory().nodes)), "its nodes are usable, and free again")
    inventory = opened.backend.inventory()
    assert inventory.cpus > 0 and len({node.node_id for node in inventory.nodes}) == len(inventory.nodes) > 0


@on_real
def test_a_program_gets_its_environment_its_arguments_and_a_folder_of_its_own(opened: Machines) -> None:
    code = "import json, os, sys; print(json.dumps([os.environ.get('GIVEN'), sys.argv[1:], os.listdir('.')]))"
    launch = opened.command("a", "python3", "-c", code, "a b", "$HOME", "'\"\\;&", GIVEN="it's $ \n here")
    opened.backend.start(launch, opened.fence)
    assert opened.ended(launch).exit_code == 0
    opened.wait_for(lambda: opened.backend.output(launch.submission), "its output is there")
    said = json.loads(opened.backend.output(launch.submission))
    assert said[:2] == ["it's $ \n here", ["a b", "$HOME", "'\"\\;&"]]


def test_the_fixture_sees_a_process_that_is_left_over(tmp_path_factory: pytest.TempPathFactory) -> None:
    with machines("local", tmp_path_factory.mktemp("local"), None) as opened:
        launch = opened.started(opened.launch("a", Program(forever=True, escapes=True)))
        escaped = opened.escaped(launch)
        assert process_lives(escaped)
    wait_for(lambda: not process_lives(escaped), "it has ended")
