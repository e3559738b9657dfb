"""The progress bar of `fleetune run` on a terminal: a spinner until the first step, then one updated line."""

from __future__ import annotations

import contextlib
import threading
from typing import Any, TextIO

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from cluster.text import duration
from jobs.run.outcome import Event
from jobs.run.progress import Pace, event_text, format_phase, step_line

_STYLES = {
    "warning": "yellow",
    "remedy": "yellow",
    "failed": "bold red",
    "evaluated": "bold",
    "phase": "dim",
    "plan": "dim",
}


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
            self._console.print(escape(event_text(event)), style=_STYLES.get(event.kind, ""), soft_wrap=True)

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


def _new_bar(console: Console) -> Progress:
    """Make the bar. It does not redirect stdout, because other output is redirected to a log already."""
    return Progress(
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
    for key, shape in (("loss", "loss {:.4f}"), ("learning_rate", "lr {:.2g}"), ("tokens_per_s", "{:,.0f} tok/s")):
        if record.get(key) is not None:
            parts.append(shape.format(record[key]))
    return [*parts, f"eta {duration(eta_s)}"] if eta_s is not None else parts
