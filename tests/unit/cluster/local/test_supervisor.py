"""What the local backend keeps of a program's output: all of it up to a limit, then the last bytes."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cluster.local.supervisor import CappedOutput
from tests.support.processes import wait_for

MOST, LAST = 1000, 100
STAMP = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ "


class Written:
    """An output, and the program's end of its pipe."""

    def __init__(self, path: Path) -> None:
        self.path, self._output = path, CappedOutput(path, MOST, LAST)
        self._output.start()

    def write(self, content: bytes) -> None:
        while content:
            content = content[os.write(self._output.writer, content) :]

    def finish(self, *, still_held: bool = False) -> bytes:
        if not still_held:
            os.close(self._output.writer)
        self._output.finish()
        return self.path.read_bytes()

    def let_go(self) -> None:
        os.close(self._output.writer)


@pytest.fixture
def output(tmp_path: Path) -> Written:
    return Written(tmp_path / "output")


def test_what_a_program_writes_is_in_the_file_at_once(output: Written) -> None:
    output.write(b"first")
    wait_for(lambda: output.path.read_bytes() == b"first", "the first bytes are there")
    output.write(b" line\n")
    wait_for(lambda: output.path.read_bytes() == b"first line\n", "the rest is there")
    assert output.finish() == b"first line\n"


def test_output_of_just_the_limit_is_kept_as_it_is(output: Written) -> None:
    output.write(b"x" * MOST)
    assert output.finish() == b"x" * MOST


def test_beyond_the_limit_the_last_lines_are_kept_and_the_file_only_grows(output: Written) -> None:
    lines = b"".join(b"line %05d\n" % number for number in range(30_000))
    output.write(lines)
    wait_for(lambda: b"is not written" in output.path.read_bytes(), "the limit is said while the program runs")
    before = output.path.read_bytes()
    whole = output.finish()
    assert whole.startswith(before) and before.startswith(lines[:MOST])
    limit, dropped, last = whole[MOST:].decode().lstrip("\n").split("\n", 2)
    assert re.fullmatch(
        STAMP + "output beyond 1000 bytes is not written: its last 100 bytes follow when the program ends", limit
    )
    assert last.encode() == lines[-99:], "nine whole lines"
    said = re.fullmatch(STAMP + "output beyond 1000 bytes was dropped: ([0-9,]+) bytes; the last ones follow", dropped)
    assert said is not None and int(said[1].replace(",", "")) == len(lines) - MOST - 99


def test_what_holds_the_pipe_when_the_program_has_ended_is_not_waited_for(output: Written) -> None:
    """For example a process of another user, which the supervisor may not end."""
    output.write(b"said\n")
    assert output.finish(still_held=True) == b"said\n"
    with pytest.raises(BrokenPipeError):
        output.write(b"too late\n")
    output.let_go()


def test_a_program_whose_output_cannot_be_written_goes_on() -> None:
    output = Written(Path("/dev/full"))
    output.write(b"x" * 300_000)  # more than a pipe holds
    output.let_go()
    output._output.finish()
