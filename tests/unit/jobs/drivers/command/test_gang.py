"""Places, exit codes and output of a gang of processes: what needs no process."""

from __future__ import annotations

import itertools
import json
import signal
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import Interrupted, MachinesFailed
from jobs.drivers.command import gang
from jobs.drivers.command.gang import LONGEST_LINE, GangWatch, Log
from jobs.drivers.command.places import (
    environment_of_program,
    exit_code_of,
    how_it_ended,
    places_of,
    variables_of,
    variables_of_job,
)
from jobs.drivers.link.messages import Registered
from jobs.spec.command import CommandSpec
from jobs.spec.queue import OWN, SET_FOR_PROGRAMS


def written(outputs: list[bytes], *, world_size: int = 2, secrets: tuple[str, ...] = ()) -> bytes:
    into = list[bytes]()
    lines = Log(into.append, secrets).of(1, world_size)
    for output in outputs:
        lines(output)
    lines.end()
    return b"".join(into)


def test_ranks_follow_the_lease_and_those_of_one_node_are_together() -> None:
    places = places_of((("b", 2), ("a", 1), ("b", 1)), 4)
    assert [(place.rank, place.node, place.local_rank, place.node_rank) for place in places] == [
        (0, "b", 0, 0), (1, "b", 1, 0), (2, "b", 2, 0), (3, "a", 0, 1),
    ]  # fmt: skip
    assert {place.world_size for place in places} == {4} and places[3].local_world_size == 1


def test_a_lease_for_another_gang_is_no_place_to_start() -> None:
    with pytest.raises(MachinesFailed, match="room for 3 processes, but the job has 2"):
        places_of((("a", 3),), 2)


def test_a_process_is_told_its_place_and_its_gpus() -> None:
    place = places_of((("a", 1), ("b", 2)), 3)[2]
    assert tuple(variables_of(place, ("10.0.0.1", 1234), ())) == SET_FOR_PROGRAMS
    assert variables_of(place, ("10.0.0.1", 1234), ["3", "5"]) == {
        "RANK": "2", "WORLD_SIZE": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "NODE_RANK": "1",
        "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234", "CUDA_VISIBLE_DEVICES": "3,5",
    }  # fmt: skip


def test_a_secret_goes_before_what_the_spec_says_and_the_driver_s_token_stays_with_it() -> None:
    spec = CommandSpec(kind="command", command=("x",), env={"A": "spec", "B": "spec"})
    registered = Registered(
        kind="command", spec={}, placement=(), engine="local", secrets={"B": "s"}, parents={"p": "/r/p", "q": "/r/q"}
    )
    told = variables_of_job(spec, registered, "job-1", 3)
    assert (told["A"], told["B"], told["FLEETUNE_JOB"], told["FLEETUNE_ATTEMPT"]) == ("spec", "s", "job-1", "3")
    assert told["FLEETUNE_PARENT_RUN"] == "/r/p" and json.loads(told["FLEETUNE_PARENT_RUNS"]) == registered.parents
    around = {"FLEETUNE_DRIVER_TOKEN": "t", "RAY_JOB_CONFIG_JSON_ENV_VAR": "{}", "PATH": "/bin", "A": "around"}
    assert environment_of_program(around, told) == {**told, "PATH": "/bin"}
    alone = variables_of_job(spec, registered.model_copy(update={"parents": {}}), "job-1", 3)
    assert "FLEETUNE_PARENT_RUN" not in alone and alone["FLEETUNE_PARENT_RUNS"] == "{}"
    assert all(name.startswith(OWN) for name in alone.keys() - {"A", "B", "PYTHONUNBUFFERED"})


@pytest.mark.parametrize(
    ("code", "driver"),
    [(0, 0), (1, 1), (3, 3), (125, 125), *((code, 1) for code in (2, 75, 77, 126, 127, 130, 255, -9, -15))],
)
def test_no_program_can_say_what_only_a_driver_says(code: int, driver: int) -> None:
    assert exit_code_of(code) == driver
    assert str(abs(code)) in how_it_ended(code)


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGSEGV, "crashed in native code (SIGSEGV, signal 11)"),
        (signal.SIGKILL, "was ended by SIGKILL (signal 9, which the kernel sends when memory runs out"),
        (signal.SIGTERM, "was ended by SIGTERM (signal 15)"),
        (40, "was ended by signal 40"),
    ],
)
def test_a_crash_is_told_from_a_kill(number: int, said: str) -> None:
    assert how_it_ended(-number).startswith(said)


def test_lines_are_whole_and_say_whose_they_are() -> None:
    assert written([b"a\nb", b"c\r\n\n10%\r20%\rdone"]) == b"[1] a\n[1] bc\n[1] 10%\n[1] 20%\n[1] done\n"
    assert written([b"a\nb"], world_size=1) == b"a\nb\n"


def test_a_line_that_does_not_end_is_cut_and_not_kept() -> None:
    into = list[bytes]()
    lines = Log(into.append, ()).of(0, 2)
    for _ in range(100):
        lines(b"x" * 10_000)
    assert sum(map(len, into)) > 990_000 and max(len(line) for line in b"".join(into).split(b"\n")) <= LONGEST_LINE + 4


@given(
    secret=st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=4, max_size=40).filter(
        lambda secret: "*" not in secret and "x" not in secret
    ),
    before=st.integers(0, 2 * LONGEST_LINE),
    cuts=st.lists(st.integers(0, 3 * LONGEST_LINE), max_size=6),
)
def test_a_secret_is_hidden_wherever_the_output_is_cut(secret: str, before: int, cuts: list[int]) -> None:
    whole = b"x" * before + secret.encode() + b"x" * LONGEST_LINE + b"\n" + secret.encode()
    edges = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    outputs = [whole[begin:end] for begin, end in itertools.pairwise(edges)]
    out = written(outputs, secrets=(secret, "other")).replace(b"\n[1] ", b"").replace(b"[1] ", b"")
    assert secret.encode() not in out and out.count(b"x") == before + LONGEST_LINE


def test_secrets_of_several_lines_and_within_one_another_are_hidden_and_very_short_ones_are_not() -> None:
    secrets = ("line-one\nline-two", "abcd", "abcdef", "no", "")
    assert written([b"line-one line-two abcdef abcd no\n"], secrets=secrets) == b"[1] *** *** *** *** no\n"


def test_a_log_that_nobody_reads_is_written_by_one_process_at_a_time() -> None:
    into: list[Any] = []
    log = Log(into.append, ())
    one, two = log.of(0, 2), log.of(1, 2)
    one(b"a")
    two(b"b\n")
    one(b"a\n")
    assert into == [b"[1] b\n", b"[0] aa\n"]


class Sleeper:
    """A process that ends when it is told to."""

    def __init__(self) -> None:
        self.told = threading.Event()

    def read(self, wait_s: float) -> tuple[bytes, int | None]:
        return b"", -signal.SIGTERM if self.told.wait(wait_s) else None

    def stop(self, *, hard: bool = False) -> None:
        self.told.set()


@pytest.mark.timeout(60)
def test_a_signal_whose_handler_outlasts_the_wait_for_an_end_is_obeyed() -> None:
    """CPython's SimpleQueue.get would wait for ever then."""
    sleeper, asked = Sleeper(), threading.Event()

    def slow(*_: Any) -> None:
        time.sleep(0.5)  # a wait takes 0.2 s
        asked.set()

    kept = signal.signal(signal.SIGUSR1, slow)
    try:
        threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1)).start()
        with pytest.raises(Interrupted):
            GangWatch([sleeper], Log(lambda lines: None, ()), asked.is_set, lambda text: None).until_the_end()
    finally:
        signal.signal(signal.SIGUSR1, kept)
    assert sleeper.told.is_set()


class _Ends:
    """A process that ends in one way, once another one has been told to stop."""

    def __init__(self, how: int | MachinesFailed, after: threading.Event | None = None) -> None:
        self._how, self._after, self.told = how, after, threading.Event()

    def read(self, wait_s: float) -> tuple[bytes, int | None]:
        if self._after is not None and not self._after.wait(wait_s):
            return b"", None
        if isinstance(self._how, MachinesFailed):
            raise self._how
        return b"", self._how

    def stop(self, *, hard: bool = False) -> None:
        self.told.set()


@pytest.mark.timeout(60)
def test_a_lost_machine_is_the_reason_although_a_peer_noticed_first_and_failed() -> None:
    """As rank 0 ends with "connection reset by peer" before Ray knows that the node of rank 1 is gone."""
    said = list[str]()
    lost = _Ends(MachinesFailed("process 1 was lost with its node"))
    lost._after = lost.told
    with pytest.raises(MachinesFailed, match="lost with its node"):
        GangWatch([_Ends(1), lost], Log(lambda lines: None, ()), lambda: False, said.append).until_the_end()
    assert said == ["process 0 ended with exit code 1; SIGTERM to the process", "process 1 was lost with its node"]


class _Says(_Ends):
    """A process that prints and ends."""

    def __init__(self, output: bytes, how: int) -> None:
        super().__init__(how)
        self._output = output

    def read(self, wait_s: float) -> tuple[bytes, int | None]:
        output, self._output = self._output, b""
        return (output, None) if output else super().read(wait_s)


@pytest.mark.timeout(60)
def test_the_last_thing_said_is_which_process_failed_and_its_last_line_without_secrets() -> None:
    said, log = list[str](), Log(lambda lines: None, ["s3cret"])
    watch = GangWatch([_Says(b"one\nToken s3cret refused\n \n", -15)], log, lambda: False, said.append)
    assert watch.until_the_end() == 1
    assert said == [
        "failed: process 0 was ended by SIGTERM (signal 15). The last line of its output: Token *** refused"
    ]
    said.clear()
    assert GangWatch([_Ends(3)], log, lambda: False, said.append).until_the_end() == 3
    assert said == ["failed: process 0 ended with exit code 3"]
    said.clear()
    assert GangWatch([_Says(b"well\n", 0)], log, lambda: False, said.append).until_the_end() == 0
    assert said == []


@pytest.mark.parametrize(
    ("pieces", "last"),
    [
        ([b"a\n", b"b\n", b"======\n\x1b[0m\n"], b"b"),
        ([b"x\n\x1b[31mno such file\x1b[0m\n\n"], b"no such file"),
        ([b"begin " + b"y" * 9000, b"tail\n"], (b"begin " + b"y" * 300)[:300]),
        ([b"begin " + b"y" * 9000, b"\nnext\n"], b"next"),
        ([b"begin " + b"y" * 9000, b"more", b" and more\n", b"after"], b"after"),
        (["Zugriff verweigert: Ü\n".encode()], "Zugriff verweigert: Ü".encode()),
        ([], b""),
    ],
)
def test_the_last_line_is_one_that_says_something_from_its_beginning(pieces: list[bytes], last: bytes) -> None:
    lines = Log(lambda text: None, ["a secret of some length"]).of(0, 1)
    for piece in pieces:
        lines(piece)
    lines.end()
    assert lines.last == last


class _CutOff(Sleeper):
    """A process on a machine that does not answer before the test ends."""

    def __init__(self, answers: threading.Event) -> None:
        super().__init__()
        self._answers = answers

    def stop(self, *, hard: bool = False) -> None:
        self._answers.wait(60)
        super().stop()


@pytest.mark.timeout(60)
def test_a_stop_reaches_every_process_though_others_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gang, "_TOLD_WITHIN_S", 0.05)
    answers, near, said = threading.Event(), Sleeper(), list[str]()
    processes = [_CutOff(answers), _CutOff(answers), near]

    def reconnect() -> None:
        near.told.wait()
        answers.set()

    def asked() -> bool:
        threading.Thread(target=reconnect, daemon=True).start()
        return True

    with pytest.raises(Interrupted):
        GangWatch(processes, Log(lambda lines: None, ()), asked, said.append).until_the_end()
    assert said == ["asked to stop: SIGTERM to 3 processes"] and all(one.told.is_set() for one in processes)
