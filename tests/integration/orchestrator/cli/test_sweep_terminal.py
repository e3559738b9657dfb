"""The table of a sweep on a pseudo terminal: drawn in place, below what the driver says, and gone at the end."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from jobs.run.outcome import Event, event
from jobs.run.paths import JobPaths
from jobs.run.progress import PlainProgress
from jobs.search.ledger import Ledger
from jobs.spec.load import dump_spec
from jobs.storage.files import write_bytes
from jobs.training.mailbox import Answer
from orchestrator.cli.displays import SweepTable, live
from orchestrator.cli.output import progress_of
from tests.support.processes import wait_for
from tests.unit.jobs.spec.test_sweep import BASE, sweep_of

COLUMNS, LINES = 80, 30
_PIECES = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|(\r)|(\n)|([^\x1b\r\n]+)")


class Terminal:
    """A pseudo terminal of 80 columns, and what somebody would see on it."""

    def __init__(self) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.stream: TextIO = os.fdopen(slave, "w", buffering=1, encoding="utf-8")
        self._sent = b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 1 << 16):
                self._sent += data
        except OSError:  # the other end is closed
            return

    @property
    def sent(self) -> str:
        return self._sent.decode(errors="replace")

    @property
    def screen(self) -> list[str]:
        """Its lines; as long a text as one likes fits into one."""
        lines, row, column = [""], 0, 0
        for found in _PIECES.finditer(self.sent):
            numbers, order, home, down, text = found.groups()
            if order == "A":
                row -= int(numbers or 1)
            elif order == "K":
                lines[row] = ""
            elif home:
                column = 0
            elif down:
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif text:
                lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
                column += len(text)
        return lines

    def shows(self, *texts: str) -> bool:
        """Whether each of them begins a line on the screen, in this order, without regard to spaces."""
        lines = iter(" ".join(line.split()) for line in self.screen)
        return all(any(line.startswith(text) for line in lines) for text in texts)

    def end(self) -> None:
        """Have all of it that was written."""
        self.stream.close()
        self._thread.join()

    def close(self) -> None:
        self.end()
        os.close(self._master)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    found = Terminal()
    yield found
    found.close()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    sweep, root = sweep_of(tmp_path, BASE), str(tmp_path / "found-1")
    write_bytes(JobPaths(root).spec, dump_spec(sweep))
    ledger = Ledger(sweep, root, lambda spec: 100, 5000.0)
    yield ledger
    ledger.close()


def begins(progress: Any, ledger: Ledger) -> None:
    progress.event(event("phase", "sweep found-1", phase="start", root=ledger.root))
    progress.event(event("phase", "starting 1 gang", phase="workers", driver="01", planned_steps=800))
    trial = ledger.add({"learning_rate": 1e-4, "warmup_ratio": 0.1})
    progress.event(event("phase", f"training trial {trial.number}", phase="train", trial=trial.number, until=100))


def finishes(progress: Any, ledger: Ledger) -> None:
    answer = Answer(status="finished", step=100, tokens=5000, loss=0.5, metrics={"eval_loss": 0.4})
    ledger.answered(ledger.trials[1], answer, ("01", 3.0, 3.0))
    progress.event(event("trial", "trial 1: loss 0.4000", trial=1, state="finished", step=100, metrics={}))


def test_the_table_is_drawn_in_place_and_leaves_only_the_lines(terminal: Terminal, ledger: Ledger) -> None:
    table = live(terminal.stream, sweep=True)
    assert isinstance(table, SweepTable)
    begins(table, ledger)
    wait_for(lambda: terminal.shows("sweep found-1", "trial rate ratio", "1 1.0e-04 0.1 - - 0/100 0 running"), "a row")
    table.event(event("warning", "careful [bold]here[/bold]"))
    finishes(table, ledger)
    row = "1 1.0e-04 0.1 0.4000 0.5000 100/100 5k finished"
    wait_for(
        lambda: terminal.shows("warning: careful [bold]here[/bold]", "trial 1: loss", row, "best so far: trial 1"),
        "its end",
    )
    assert not terminal.shows("1 1.0e-04 0.1 - - 0/100 0 running")
    table.event(event("leaderboard", "trial  loss\n    1  0.4"))
    table.event(event("ended", "succeeded"))
    table.close()
    table.close()
    terminal.end()
    said = ["sweep found-1", "starting 1 gang", "warning: careful [bold]here[/bold]", "trial 1: loss 0.4000"]
    assert [line.rstrip() for line in terminal.screen if line.strip()] == [
        *said, "trial  loss", "    1  0.4", "succeeded"
    ]  # fmt: skip
    assert terminal.sent.count("\x1b[?25l") == terminal.sent.count("\x1b[?25h") == 1


def test_the_table_goes_when_it_is_closed_in_the_middle(terminal: Terminal, ledger: Ledger) -> None:
    table = SweepTable(terminal.stream, look_every_s=0.05)
    begins(table, ledger)
    wait_for(lambda: terminal.shows("1 1.0e-04"), "a row")
    table.event(event("stopping", "stopping after a checkpoint of the next step"))
    wait_for(lambda: any(re.search(r"stopping \(.+\); .+ passed", line) for line in terminal.screen), "it is stopping")
    table.close()
    terminal.end()
    assert "\x1b[?25h" in terminal.sent, "the cursor is shown"
    left = [line for line in terminal.screen if line.strip()]
    assert left == ["sweep found-1", "starting 1 gang", "stopping after a checkpoint of the next step"]


def test_the_steps_of_a_final_run_are_shown_after_the_table(terminal: Terminal, ledger: Ledger) -> None:
    table = SweepTable(terminal.stream, look_every_s=0.05)
    begins(table, ledger)
    finishes(table, ledger)
    wait_for(lambda: terminal.shows("1 1.0e-04"), "a row")
    table.event(event("leaderboard", "trial  loss"))
    table.event(event("phase", "training the best values once more", phase="final", steps=100))
    table.event(event("plan", "100 steps", total_steps=100))
    table.step({"step": 7, "loss": 0.25, "step_time_s": 1.0})
    wait_for(lambda: any("step 7/100  loss 0.2500  eta 1m33s" in line for line in terminal.screen), "its step")
    assert not terminal.shows("1 1.0e-04") and not any("passed" in line for line in terminal.screen)
    table.event(event("ended", "succeeded"))
    table.close()
    terminal.end()
    assert "\x1b[?25h" in terminal.sent, "the cursor is shown"
    *_, before, _, step, last = [line for line in terminal.screen if line.strip()]
    assert (before, step, last) == ("training the best values once more", "step 7/100  loss 0.2500", "succeeded")


def test_no_color_is_respected(terminal: Terminal, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    table = SweepTable(terminal.stream, look_every_s=0.05)
    begins(table, ledger)
    table.event(event("warning", "careful"))
    wait_for(lambda: terminal.shows("warning: careful", "1 1.0e-04"), "a row")
    table.close()
    terminal.end()
    assert not re.findall(r"\x1b\[[0-9;]*(?:3|4|9)[0-9][0-9;]*m", terminal.sent)


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    for sweep in (True, False):
        lines = live(terminal.stream, sweep=sweep)
        assert isinstance(lines, PlainProgress)
        lines.close()  # its thread would write to a closed terminal


def test_what_is_no_terminal_gets_every_event_as_a_line(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    progress, told = progress_of(False, sweep=True), list[Event]()

    class Both:
        def event(self, happened: Event) -> None:
            told.append(happened)
            progress.event(happened)

    begins(Both(), ledger)
    finishes(Both(), ledger)
    progress.close()
    assert [one.message for one in told] == [
        "sweep found-1", "starting 1 gang", "training trial 1", "trial 1: loss 0.4000"
    ]  # fmt: skip
    assert capsys.readouterr().out == "".join(f"{one.at:%Y-%m-%d %H:%M:%SZ} {one.message}\n" for one in told)
