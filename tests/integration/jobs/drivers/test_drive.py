"""The driver of a queued job that trains, as a process, with a server that may be silent, or want it to end."""

from __future__ import annotations

import json
import pathlib
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.drivers.link.messages import Instruction, Registered
from jobs.run.checkpoints import committed_steps
from jobs.run.outcome import Status, read_outcome
from jobs.run.paths import JobPaths
from jobs.run.record import read_steps
from jobs.spec.load import dump_spec
from tests.support import tiny
from tests.support.drivers import Driver, driver, registered, rss_mb
from tests.support.gangs import PACED_ALONE
from tests.support.hold import Hold
from tests.support.processes import closed_port, processes_with, wait_for
from tests.support.wireserver import JOB, TOKEN, WireServer, wire_server

NOTHING = Registered(kind="finetune", spec={}, placement=(("n1", 1),), engine="local")
SECRET = "a-planted-value-9c1"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("drive")
    tiny.save_model(folder / "llama", "llama")
    tiny.write_text(folder / "text.jsonl", 400)
    return folder


def spec(workshop: pathlib.Path, **changes: Any) -> dict[str, Any]:
    """Of one worker: gangs are shown elsewhere."""
    one = {"resources__num_workers": 1} | changes
    made = tiny.spec_of(workshop / "runs", workshop / "llama", workshop / "text.jsonl", **one)
    found: dict[str, Any] = json.loads(dump_spec(made))
    return found


@pytest.fixture
def server() -> Iterator[WireServer]:
    with wire_server(NOTHING) as server:
        yield server


def run_of(server: WireServer) -> JobPaths:
    wait_for(lambda: server.newest.run, "the server knows the run", 240)
    assert server.newest.run is not None
    return JobPaths(server.newest.run)


def trains(server: WireServer, driving: Driver, step: int = 2) -> None:
    wait_for(
        lambda: (server.newest.step or 0) >= step or driving.process.poll() is not None, f"step {step} is told", 300
    )
    assert driving.process.poll() is None, driving.output


def test_a_driver_that_waits_for_its_server_is_small_and_ends_when_it_is_told_to() -> None:
    with closed_port() as port, driver(WireServer(NOTHING, port=port)) as waiting:
        waiting.wait_for("waiting for the server")
        assert rss_mb(waiting.process.pid) < 60
        waiting.process.send_signal(signal.SIGTERM)
        assert waiting.ended() == 130
    assert TOKEN not in waiting.output


def test_a_driver_that_nobody_has_given_a_job_says_what_to_do(server: WireServer) -> None:
    with driver(server, FLEETUNE_JOB="") as lost:
        assert lost.ended() == 2
    assert "fleetune run SPEC or fleetune submit SPEC" in lost.output


@pytest.mark.parametrize(
    ("status", "code", "said"), [(410, 130, "is over"), (422, 75, "does not understand"), (400, 2, "the test says 400")]
)
def test_a_driver_that_is_not_wanted_ends(server: WireServer, status: int, code: int, said: str) -> None:
    server.error, server.status = "AttemptOver" if status == 410 else "X", status
    with driver(server) as unwanted:
        assert unwanted.ended() == code
    assert said in unwanted.output


def test_a_spec_that_is_none_and_an_order_that_comes_first_end_the_driver(server: WireServer) -> None:
    with driver(server) as wrong:
        assert wrong.ended() == 2
    assert "error: model: is missing" in wrong.output
    server.registered = NOTHING.model_copy(update={"order": Instruction.STOP})
    with driver(server) as late:
        assert late.ended() == 130


@pytest.mark.slow
def test_a_job_trains_and_its_server_hears_of_it_through_a_long_silence(
    server: WireServer, workshop: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """What the driver of a training reports, that it goes on without a server, and that no file has a secret."""
    wanted = spec(workshop, train__max_steps=40, data__eval_fraction=0.2, queue__secrets=["PLANTED"])
    server.registered = registered(wanted, secrets={"PLANTED": SECRET})
    hold = Hold(tmp_path)
    hold.at(2)
    with driver(server, **hold.environment) as training:
        trains(server, training)
        paths = run_of(server)
        server.silent = True
        training.wait_for("goes on without it")
        before = len(server.beats)
        hold.at(20)
        wait_for(lambda: len(read_steps(paths)) >= 20, "it trains on", 240)
        assert len(server.beats) == before
        server.silent = False
        hold.release()
        assert training.ended() == 0, training.output
    beat = server.newest
    assert (beat.step, beat.total_steps, beat.run) == (40, 40, paths.root)
    assert {"loss", "learning_rate", "eval_loss"} <= set(beat.metrics) and beat.remaining_s == 0
    assert beat.interruption_cost_s is not None and 0 < beat.interruption_cost_s < 600
    assert training.output.count("goes on without it") == 1
    outcome = read_outcome(paths)
    assert outcome is not None and outcome.status is Status.SUCCEEDED and outcome.metrics["eval_loss"] > 0
    assert SECRET not in training.output and not _files_with(paths, SECRET)
    # A forked worker outlives the process that Ray has started for it, for a moment.
    wait_for(lambda: not processes_with(f"FLEETUNE_DRIVER_TOKEN={TOKEN}"), "nothing of it stays", 60)


def _files_with(paths: JobPaths, text: str) -> list[str]:
    files = [path for path in pathlib.Path(paths.root).rglob("*") if path.is_file()]
    return [str(path) for path in files if text.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_job_that_is_told_to_leave_ends_at_once_and_what_was_killed_goes_on_at_once_and_larger(
    server: WireServer, workshop: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The driver of a job without Ray: without a last save where it has to leave, and on two workers what one has
    begun.
    """
    elastic = {
        "resources__num_workers": {"min": 1, "max": 2}, "train__global_batch_size": 8, "train__max_steps": 3_000,
        "train__per_device_train_batch_size": 4,
    }  # fmt: skip
    small, large = (("n1", 1),), (("n1", 2),)
    server.registered = registered(spec(workshop, checkpoint__save_steps=1, **elastic), placement=small)
    hold = Hold(tmp_path)
    hold.at(4)
    # Not forked: a forked worker outlives the process that Ray has started for it, for a moment.
    with driver(server, **hold.environment | {"PYTHONPATH": PACED_ALONE}) as first:
        trains(server, first, 3)
        paths = run_of(server)
        wait_for(lambda: committed_steps(paths), "there is a checkpoint")
        server.order = Instruction.LEAVE
        assert first.ended() == 130
        assert read_outcome(paths) is None
        # The driver does not wait for those whose parent it has killed before them.
        wait_for(lambda: not processes_with(f"FLEETUNE_JOB={JOB}"), "nothing of it stays")
    server.order = Instruction.GO_ON
    server.requests.clear()
    server.registered = registered(spec(workshop, **elastic), run=paths.root, placement=large)
    hold.at(8)
    with driver(server, **hold.environment) as second:
        wait_for(lambda: (server.newest.step or 0) > 1 and server.newest.run == paths.root, "it goes on", 300)
        second.process.send_signal(signal.SIGTERM)
        assert second.ended() == 130, second.output
        assert "starting 2 workers" in second.output and "written by 1 worker" in second.output
    assert read_outcome(paths) is not None


@pytest.mark.slow
def test_a_run_that_has_succeeded_is_not_run_again_and_one_that_left_nothing_begins_anew(
    server: WireServer, workshop: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    wanted = spec(workshop, train__max_steps=2)
    server.registered = registered(wanted, run=str(tmp_path / "never-begun"))
    with driver(server) as first:
        assert first.ended() == 0, first.output
    paths = run_of(server)
    assert paths.root == str(tmp_path / "never-begun")  # where the server has said
    server.registered = registered(wanted, run=paths.root)
    with driver(server) as second:
        assert second.ended() == 0, second.output
    assert "has succeeded in an earlier attempt" in second.output and server.newest.run == paths.root
