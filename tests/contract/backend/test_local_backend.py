"""What only the local backend can show: kills of its supervisor, locks, numbers of processes, what programs inherit."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cluster.backend import Launch, Phase, Submission
from cluster.capacity.inventory import Inventory, Node
from cluster.errors import BackendUnreachable
from cluster.local import supervisor as files
from cluster.local.backend import LocalBackend
from tests.support.backends import Machines, Program, machines
from tests.support.processes import process_lives, processes_with, wait_for

FOREVER = Program(forever=True)


@pytest.fixture
def opened(tmp_path: pathlib.Path) -> Iterator[Machines]:
    with machines("local", tmp_path, None) as made:
        yield made


def folder_of(opened: Machines, launch: Launch) -> pathlib.Path:
    return opened.traces / "local" / "submissions" / launch.submission


def runs(opened: Machines, launch: Launch) -> bool:
    state = opened.state(launch)
    return state is not None and state.phase is Phase.RUNNING


def supervisor_of(opened: Machines, launch: Launch) -> int:
    return int(json.loads((folder_of(opened, launch) / files.SUPERVISOR).read_text())["pid"])


def claim_of(opened: Machines, name: str) -> Launch:
    """A name as a starter leaves it that is killed between taking it and starting the program."""
    done = opened.started(opened.launch("done"))
    opened.ended(done)
    claim = opened.launch(name)
    content = json.loads((folder_of(opened, done) / files.LAUNCH).read_text())
    content["command"] = claim.command
    folder = folder_of(opened, claim)
    (folder / "work").mkdir(parents=True)
    (folder / files.LOCK).touch()
    (folder / files.LAUNCH).write_text(json.dumps(content))
    return claim


def has_ended(opened: Machines, pid: int) -> None:
    """Its memory is gone at once; the kernel may take a moment more to end what was killed."""
    assert pid not in processes_with(f"FLEETUNE_TEST={opened.mark}")
    wait_for(lambda: not process_lives(pid), "it has ended")


def test_a_name_whose_starter_was_killed_before_it_started_the_program_is_lost_at_once(opened: Machines) -> None:
    claim = claim_of(opened, "claim")
    for _ in range(2):
        assert opened.state(claim) == Submission(claim.submission, Phase.LOST, None, "it was never started")
        opened.backend.start(claim, opened.fence)
    assert opened.starts(claim) == 0


def test_a_name_is_pending_while_its_starter_lives_and_a_stop_then_keeps_it_from_starting(opened: Machines) -> None:
    claim = claim_of(opened, "claim")
    folder = folder_of(opened, claim)
    with open(folder / files.LOCK) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert opened.state(claim) == Submission(claim.submission, Phase.PENDING)
        opened.backend.stop(claim.submission)
        supervise = [sys.executable, "-I", "-S", files.__file__, str(folder)]
        subprocess.run(supervise, check=True, pass_fds=[lock.fileno()], cwd=folder)
    assert opened.ended(claim) == Submission(claim.submission, Phase.STOPPED, None, "stopped before it was started")
    assert opened.starts(claim) == 0


def test_a_server_that_freezes_while_it_starts_a_program_holds_up_no_other_for_long(
    opened: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.local.backend._LOCKED_FOR_S", 0.2)
    launch = opened.launch("a", FOREVER)
    with open(opened.traces / "local" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BackendUnreachable, match="another server has held its lock"):
            opened.backend.fence(opened.fence)
        with pytest.raises(BackendUnreachable, match="another server has held its lock"):
            opened.backend.start(launch, opened.fence)
    opened.started(launch)


def test_with_its_supervisor_a_program_ends_and_all_that_it_has_started_and_is_lost(opened: Machines) -> None:
    launch = opened.started(opened.launch("a", Program(forever=True, listens=False, escapes=True)))
    escaped = opened.escaped(launch)
    os.kill(supervisor_of(opened, launch), signal.SIGKILL)
    end = opened.ended(launch)
    assert end.phase is Phase.LOST and "supervisor is gone" in end.message
    has_ended(opened, escaped)
    opened.backend.start(launch, opened.fence)
    assert opened.starts(launch) == 1


def test_another_process_that_got_the_number_of_a_supervisor_is_left_alone(opened: Machines) -> None:
    """As after a restart of the machine: no lock is held, and numbers of processes are given anew."""
    launch = opened.started(opened.launch("a", FOREVER))
    supervisor = folder_of(opened, launch) / files.SUPERVISOR
    written = json.loads(supervisor.read_text())
    with subprocess.Popen(["sleep", "1000"]) as bystander:
        supervisor.write_text(json.dumps({**written, "pid": bystander.pid}))
        opened.backend.stop(launch.submission, hard=True)  # goes to nobody
        os.kill(written["pid"], signal.SIGKILL)
        assert opened.ended(launch).phase is Phase.LOST
        opened.backend.stop(launch.submission, hard=True)
        assert bystander.poll() is None
        bystander.kill()


def test_what_a_program_leaves_behind_ends_with_it(opened: Machines) -> None:
    launch = opened.started(opened.launch("a", Program(escapes=True)))
    escaped = opened.escaped(launch)
    assert opened.ended(launch) == Submission(launch.submission, Phase.SUCCEEDED, 0)
    has_ended(opened, escaped)


def test_a_soft_stop_is_one_sigterm_to_the_program_alone(opened: Machines) -> None:
    """Programs take a second one for impatience, and look after their children themselves."""
    script = "trap 'echo asked' TERM; sh -c 'trap \"echo child asked\" TERM; echo up; while :; do sleep 0.05; done' & "
    launch = opened.command("a", "sh", "-c", script + "while :; do wait; done")
    opened.backend.start(launch, opened.fence)
    opened.wait_for(lambda: b"up" in opened.backend.output(launch.submission), "both are up")
    for _ in range(3):
        opened.backend.stop(launch.submission)
    opened.wait_for(lambda: b"asked" in opened.backend.output(launch.submission), "it was asked")
    opened.backend.stop(launch.submission, hard=True)
    assert opened.ended(launch) == Submission(launch.submission, Phase.STOPPED, -9)
    assert opened.backend.output(launch.submission) == b"up\nasked\n"


def test_a_stopped_program_keeps_its_exit_code(opened: Machines) -> None:
    launch = opened.command("a", "sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.02; done")
    opened.backend.start(launch, opened.fence)
    opened.wait_for(lambda: opened.backend.output(launch.submission), "it is up")
    opened.backend.stop(launch.submission)
    assert opened.ended(launch) == Submission(launch.submission, Phase.STOPPED, 7)


def test_a_program_inherits_no_files_no_blocked_signals_and_a_session_of_its_own(opened: Machines) -> None:
    code = (
        "import json, os, signal; print(json.dumps([sorted(os.listdir('/proc/self/fd')), os.getsid(0) == os.getpid(),"
        "len(signal.pthread_sigmask(signal.SIG_BLOCK, [])), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL]))"
    )
    launch = opened.command("a", sys.executable, "-c", code)
    opened.backend.start(launch, opened.fence)
    assert opened.ended(launch).exit_code == 0
    open_files, *rest = json.loads(opened.backend.output(launch.submission))
    assert open_files[:3] == ["0", "1", "2"] and len(open_files) == 4  # the last: the folder that is being listed
    assert rest == [True, 0, True]


def test_a_program_starts_in_its_working_dir_and_finds_programs_there_by_path(opened: Machines) -> None:
    (opened.traces / "here").write_text("#!/bin/sh\npwd\n")
    (opened.traces / "here").chmod(0o700)
    launch = Launch(f"{opened.prefix}a", ("./here",), working_dir=str(opened.traces))
    opened.backend.start(launch, opened.fence)
    assert opened.ended(launch).exit_code == 0
    assert opened.backend.output(launch.submission) == f"{opened.traces}\n".encode()


def test_only_its_owner_can_read_the_folder_and_secrets_are_not_kept_in_it(opened: Machines) -> None:
    launch = opened.command("a", "sleep", "1000", SECRET="do-not-keep-me")
    opened.backend.start(launch, opened.fence)
    opened.wait_for(lambda: runs(opened, launch), "it runs, and all of its files are written")
    root = opened.traces / "local"
    assert root.stat().st_mode & 0o777 == 0o700
    assert not [path for path in root.rglob("*") if path.is_file() and b"do-not-keep-me" in path.read_bytes()]


def test_a_folder_that_was_open_to_others_is_closed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "open").mkdir(mode=0o755)
    LocalBackend(tmp_path / "open")
    assert (tmp_path / "open").stat().st_mode & 0o777 == 0o700


def test_what_a_killed_starter_has_left_half_made_is_swept_away(opened: Machines) -> None:
    launch = opened.launch("a")
    half = opened.traces / "local" / "new"
    (half / "work").mkdir(parents=True)
    (half / files.LAUNCH).write_text("{")
    opened.started(launch)
    assert opened.ended(launch).phase is Phase.SUCCEEDED
    assert not half.exists()


def test_the_inventory_is_this_machine_or_what_was_given(tmp_path: pathlib.Path) -> None:
    (node,) = LocalBackend(tmp_path / "a").inventory().nodes
    assert node.cpus == len(os.sched_getaffinity(0)) and node.node_id == os.uname().nodename
    assert (node.gpus > 0) == (node.accelerator_type is not None) or not shutil.which("nvidia-smi")
    given = Inventory((Node("n1", 4, 8, "H100"), Node("n2", 4)))
    assert LocalBackend(tmp_path / "b", given).inventory() == given


def test_no_supervisor_is_left_as_a_zombie_of_its_starter(opened: Machines) -> None:
    launch = opened.started(opened.launch("a", FOREVER))
    supervisor = supervisor_of(opened, launch)
    parent = pathlib.Path(f"/proc/{supervisor}/stat").read_text().rpartition(")")[2].split()[1]
    assert int(parent) != os.getpid()
    opened.backend.stop(launch.submission)
    opened.ended(launch)
    wait_for(lambda: not pathlib.Path(f"/proc/{supervisor}").exists(), "it is gone")


def test_a_starter_that_ignores_the_end_of_its_children_does_not_hand_that_on(opened: Machines) -> None:
    """Servers do, so as to have no zombies; a supervisor with it would see neither an end nor an exit code."""
    launch = opened.launch("a", Program(exit_code=3))
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        opened.backend.start(launch, opened.fence)
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert opened.ended(launch) == Submission(launch.submission, Phase.FAILED, 3)


def test_a_program_that_prints_without_end_fills_no_disk_and_its_last_words_are_kept(opened: Machines) -> None:
    most = 100_000
    opened.backend = LocalBackend(opened.traces / "local", most_output_bytes=most)
    script = "head -c 3000000 /dev/zero; (setsid sleep 1000 &) ; echo; echo error: the reason; exit 3"
    launch = opened.command("a", "sh", "-c", script)
    opened.backend.start(launch, opened.fence)
    assert opened.ended(launch) == Submission(launch.submission, Phase.FAILED, 3, "the reason")
    assert b"the last ones follow\n\0" in opened.backend.output(launch.submission, most)
    assert (folder_of(opened, launch) / files.OUTPUT).stat().st_size < most + (1 << 20) + 1000


def test_an_end_that_cannot_be_recorded_on_a_full_disk_is_recorded_once_there_is_space(opened: Machines) -> None:
    """A limit on the process stands for the disk's end."""
    script = "trap 'exit 7' TERM; echo up; while :; do sleep 0.02; done"
    launch = opened.command("a", "sh", "-c", script)
    opened.backend.start(launch, opened.fence)
    opened.wait_for(lambda: opened.backend.output(launch.submission) and runs(opened, launch), "it is up")
    supervisor = supervisor_of(opened, launch)
    no_limit = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    resource.prlimit(supervisor, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    opened.backend.stop(launch.submission)
    wait_for(lambda: processes_with(f"FLEETUNE_TEST={opened.mark}") in ([], [supervisor]), "the program has ended")
    running = Submission(launch.submission, Phase.RUNNING)
    assert opened.state(launch) == running, "not lost, because its end may be a success"
    resource.prlimit(supervisor, resource.RLIMIT_FSIZE, no_limit)
    assert opened.ended(launch) == Submission(launch.submission, Phase.STOPPED, 7)


def test_a_program_goes_on_if_its_start_cannot_be_recorded(tmp_path: pathlib.Path) -> None:
    launch = {"command": ["true"], "working_dir": str(tmp_path), "token": "token"}
    (tmp_path / files.LAUNCH).write_text(json.dumps(launch))
    (tmp_path / files.PROGRAM / "in the way").mkdir(parents=True)
    subprocess.run([sys.executable, "-I", "-S", files.__file__, str(tmp_path)], check=True)
    wait_for((tmp_path / files.END).exists, "the program has ended")
    assert json.loads((tmp_path / files.END).read_text())["exit_code"] == 0


def test_a_program_starts_also_for_a_server_of_an_older_release(tmp_path: pathlib.Path) -> None:
    """Between the upgrade of the package and the restart of its server."""
    launch = {"command": ["true"], "working_dir": str(tmp_path), "token": "token"}
    (tmp_path / files.LAUNCH).write_text(json.dumps(launch))
    subprocess.run([sys.executable, "-I", "-S", files.__file__, str(tmp_path)], check=True)
    wait_for((tmp_path / files.END).exists, "the program has ended")
    assert json.loads((tmp_path / files.END).read_text())["exit_code"] == 0
