"""The displays of `fleetune run` on a terminal: a progress bar for a run, and a live table for a sweep.

`orchestrator.pages.sweep` makes the lines of the table.
"""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any, Final, TextIO

from rich.console import Console, ConsoleDimensions, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as Bar
from rich.spinner import Spinner
from rich.text import Text

from cluster.errors import FleetuneError
from cluster.text import duration
from jobs.run.outcome import Event
from jobs.run.paths import JobPaths
from jobs.run.progress import Pace, PlainProgress, Progress, event_text, format_phase, step_line
from jobs.run.summary import utc_now
from jobs.search.report.status import DriverState, SweepStatus, read_status
from jobs.search.trials import Trials
from jobs.spec.load import load_sweep
from orchestrator.pages.sweep import format_elapsed, screen

_LOOK_EVERY_S: Final = 1.0
_END_S: Final = 2.0  # most time to wait for a read that storage holds up
_SPARE_LINES: Final = 3  # lines below the table: the spinner's line, and room for the prompt and the user's typing
_BAR_EVENTS: Final = {
    "warning": "yellow",
    "remedy": "yellow",
    "failed": "bold red",
    "evaluated": "bold",
    "phase": "dim",
    "plan": "dim",
}
_TABLE_EVENTS: Final = {"warning": "yellow", "failed": "bold red", "phase": "dim", "stopping": "yellow"}
_LINES: Final = {"head": "dim", "best": "bold green", "running": "cyan", "failed": "red", "other": "", "note": ""}
_IN_THE_TABLE: Final = "train"  # phase of events that the table shows itself: a trial starts or advances


class BarProgress:
    """Draws a bar on `stream`, a terminal, also while the process's stdout is redirected."""

    def __init__(self, stream: TextIO, *, width: int | None = None) -> None:
        self._console = Console(file=stream, highlight=False, width=width)
        self._bar = _new_bar(self._console)
        self._task = self._bar.add_task("starting", total=None)
        self._pace = Pace()
        self._lock = threading.RLock()
        self._last: dict[str, Any] | None = None
        self._printed_step: int | None = None
        self._open = True
        self._bar.start()

    def event(self, event: Event) -> None:
        with self._lock:
            if event.kind == "phase":
                self._bar.update(self._task, description=format_phase(event), since=self._bar.get_time())
            if event.kind == "evaluated":
                self._bar.update(self._task, description="training", since=self._bar.get_time())
            self._pace.event(event)
            if event.kind in ("failed", "ended") or event.data.get("phase") == "evaluate":
                self._print_step()
            self._console.print(escape(event_text(event)), style=_BAR_EVENTS.get(event.kind, ""), soft_wrap=True)

    def _print_step(self) -> None:
        """Print the newest step as a permanent line, once."""
        if self._last is not None and self._last["step"] != self._printed_step:
            self._printed_step = self._last["step"]
            self._console.print(escape(step_line(self._last, self._pace.total, None)), style="dim", soft_wrap=True)

    def step(self, record: dict[str, Any]) -> None:
        with self._lock:
            self._last = record
            self._bar.update(
                self._task,
                description="training",
                total=self._pace.total,
                completed=record["step"],
                record=record,
                eta_s=self._pace.eta_s(record),
            )

    def close(self) -> None:
        with self._lock:
            if self._open:
                self._open = False
                with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
                    self._bar.stop()


def _new_bar(console: Console) -> Bar:
    """Make the bar. It does not redirect stdout, because other output is redirected to a log already."""
    return Bar(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        _StepBar(bar_width=24),
        _Numbers(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        refresh_per_second=4,
    )


class _StepBar(BarColumn):
    """The bar, hidden until there is a step to show."""

    def render(self, task: Task) -> Any:
        return super().render(task) if "record" in task.fields else Text("")


class _Numbers(ProgressColumn):
    """Step, loss, rate, tokens/s and remaining time; before the first step, the seconds of the phase."""

    max_refresh = 0.25

    def render(self, task: Task) -> Text:
        in_phase_s = task.get_time() - task.fields.get("since", task.start_time or task.get_time())
        if task.description != "training" or "record" not in task.fields:  # no step has ended yet
            return Text(duration(in_phase_s), style="dim")
        return Text("  ".join(_numbers(task.fields["record"], task.total, task.fields.get("eta_s"))))


def _numbers(record: dict[str, Any], total: float | None, eta_s: float | None) -> list[str]:
    parts = [f"{record['step']}/{total:.0f}" if total else f"step {record['step']}"]
    shapes = (("loss", "loss {:.4f}"), ("learning_rate", "lr {:.2g}"), ("tokens_per_s", "{:,.0f} tok/s"))
    parts += [shape.format(record[key]) for key, shape in shapes if record.get(key) is not None]
    return [*parts, f"eta {duration(eta_s)}"] if eta_s is not None else parts


def live(stream: TextIO, *, sweep: bool) -> Progress:
    """Return a bar or a sweep's table, or plain lines if the terminal cannot move its cursor (TERM=dumb)."""
    if Console(file=stream).is_dumb_terminal:
        return PlainProgress(stream)
    return SweepTable(stream) if sweep else BarProgress(stream)


class SweepTable:
    """Draws a table on `stream`, a terminal, also while the process's stdout is redirected.

    The driver's messages are printed above the table. The table is read from the sweep's directory.
    """

    def __init__(self, stream: TextIO, *, look_every_s: float = _LOOK_EVERY_S) -> None:
        self._console = Console(file=stream, highlight=False)
        self._driver, self._lock = DriverState(), threading.Lock()
        self._status: SweepStatus | None = None  # replaced as a whole, since the drawing thread takes no lock
        self._pace = Pace()  # pace of the final run
        self._step: tuple[dict[str, Any], float | None] | None = None  # of the final run: newest record, seconds to go
        self._is_over = False  # whether the search has ended
        self._look_every_s, self._ended = look_every_s, threading.Event()
        self._looker: threading.Thread | None = None
        self._spinner = Spinner("dots")
        self._live = Live(
            get_renderable=self._drawn,
            console=self._console,
            transient=True,
            redirect_stdout=False,  # other output to stdout is redirected to a log already
            redirect_stderr=False,
        )
        self._live.start()

    def event(self, event: Event) -> None:
        phase = event.data.get("phase")
        with self._lock:
            self._driver.update(event)
            if event.kind == "leaderboard":  # it says the same as the table
                self._is_over, self._status = True, None
            self._pace.event(event)
            if phase == "start" and "root" in event.data and self._looker is None:
                self._looker = threading.Thread(target=self._keep_looking, args=(event.data["root"],), daemon=True)
                self._looker.start()
        # Without our lock: the drawing thread holds the terminal's lock.
        if phase == "export" or event.kind in ("failed", "ended"):
            self._print_step()
        if phase != _IN_THE_TABLE:
            self._console.print(escape(event_text(event)), style=_TABLE_EVENTS.get(event.kind, ""), soft_wrap=True)

    def step(self, record: dict[str, Any]) -> None:
        """Note a step of the final run, which follows the search. Trials do not report steps here."""
        with self._lock:
            self._driver.phase = None
            self._step = record, self._pace.eta_s(record)

    def _print_step(self) -> None:
        """Print the newest step of the final run as a permanent line, once."""
        step, self._step = self._step, None
        if step is not None:
            line = step_line(step[0], self._pace.total, None)
            self._console.print(escape(line), style="dim", soft_wrap=True)

    def close(self) -> None:
        self._ended.set()
        if self._looker is not None:
            self._looker.join(_END_S)
        with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
            self._live.stop()

    def _keep_looking(self, root: str) -> None:
        trials: Trials | None = None
        while not self._ended.wait(self._look_every_s) and not self._is_over:
            with contextlib.suppress(FleetuneError):  # the next look tries again
                if trials is None and (sweep := load_sweep(JobPaths(root).spec)) is not None:
                    trials = Trials(sweep, root)
                if trials is not None:
                    status = read_status(trials, self._driver, utc_now())
                    with self._lock:
                        self._status = None if self._is_over else status

    def _drawn(self) -> Group:
        with contextlib.suppress(OSError, ValueError):  # rich measures stdin and stdout, which may not be the terminal
            size = os.get_terminal_size(self._console.file.fileno())
            if size.columns and size.lines:
                self._console.size = ConsoleDimensions(size.columns, size.lines)
        status, (width, height) = self._status, self._console.size
        lines = screen(status, width - 1, height - _SPARE_LINES) if status is not None else []
        said = []
        if (phase := self._driver.phase) is not None:
            said.append(f"{phase[0]} ({duration(max((utc_now() - phase[1]).total_seconds(), 0.0))})")
        if (step := self._step) is not None:
            said.append(step_line(step[0], self._pace.total, step[1]))
        if status is not None and status.trials:
            said.append(format_elapsed(status))
        self._spinner.update(text=Text("; ".join(said) or "starting", no_wrap=True, overflow="ellipsis"))
        return Group(*(Text(text, style=_LINES[kind], no_wrap=True) for text, kind in lines), self._spinner)
