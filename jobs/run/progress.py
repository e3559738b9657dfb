"""Shows the progress of a run: a protocol, plain lines for logs, and an implementation that shows nothing."""

from __future__ import annotations

import contextlib
import datetime
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from cluster.text import duration, when
from jobs.planning.step_time import mean_step_s, repeated_s
from jobs.run.metric_names import metric_items
from jobs.run.outcome import Event

STEP_LINE_INTERVAL_S = 10.0  # at most one line for a step in this time
SILENCE_S = 30.0  # without another line for this long, a sign of life is printed

_STEPS = 50  # newest steps from which the time of the others is estimated
_SLOW_STEPS = 2  # first steps that do not count

Clock = Callable[[], float]


class Progress(Protocol):
    """Receives events and steps, from any thread. `close` ends the display and may be called twice."""

    def event(self, event: Event) -> None: ...

    def step(self, record: dict[str, Any]) -> None:
        """`record` is one object of the metrics: step (1-based, completed), epoch, loss, learning_rate, ..."""

    def close(self) -> None: ...


class NoProgress:
    """Shows nothing."""

    def event(self, event: Event) -> None: ...

    def step(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class Pace:
    """Estimates the seconds to the end of a run from its events and the records of its steps.

    A step takes `mean_step_s` of the newest steps, each without what no later step repeats. The first two steps are
    slower: as many of them are left out as leave two steps. The mean time between steps, in which the run saves, is
    added. Each evaluation that is left takes as long as the newest one, which may be that before the first step.
    """

    def __init__(self) -> None:
        self.total: int | None = None  # steps of the run
        self._eval_steps: int | None = None
        self._evaluation_s = 0.0  # seconds of the newest evaluation
        self._last: dict[str, Any] = {}  # the newest step; empty: none since training began or went back
        self._tokens: float | None = None  # mean computed tokens of a step
        self._step_s: deque[float] = deque(maxlen=_STEPS)
        self._deviations: deque[float] = deque(maxlen=_STEPS)  # of these steps' computed tokens, relative to the mean
        self._between_s: deque[float] = deque(maxlen=_STEPS)  # seconds between steps without evaluations

    def event(self, event: Event) -> None:
        """Read from an event what the estimate needs."""
        if event.kind == "plan":
            self.total = event.data.get("total_steps", self.total)
            self._eval_steps = event.data.get("eval_steps")
            self._tokens = event.data.get("computed_tokens_per_step")
            self._begin()
        elif event.kind == "evaluated":
            self._evaluation_s = float(event.data.get("seconds", 0.0))

    def _begin(self) -> None:
        self._last = {}
        self._step_s.clear()
        self._deviations.clear()
        self._between_s.clear()

    def eta_s(self, record: dict[str, Any]) -> float | None:
        """Return the seconds from the end of a step to the end of the run; None while its length is not known.

        Call it for every step. A step may come twice: before its evaluation, and with it.
        """
        step = int(record["step"])
        if step < self._last.get("step", 0):
            self._begin()
        if step != self._last.get("step"):
            self._step_s.append(repeated_s(record))
            known = self._tokens and "computed_tokens" in record
            self._deviations.append(record["computed_tokens"] / self._tokens - 1 if known else 0.0)
            if "at" in record and "at" in self._last:  # older releases did not write it
                before_s = record.get("step_time_s", 0.0) + self._last.get("evaluation_s", 0.0)
                self._between_s.append(max(record["at"] - self._last["at"] - before_s, 0.0))
        self._last = record
        self._evaluation_s = record.get("evaluation_s", self._evaluation_s)
        if self.total is None:
            return None
        first = min(_SLOW_STEPS, max(len(self._step_s) - 2, 0))
        step_s = mean_step_s(list(self._step_s)[first:], list(self._deviations)[first:])
        step_s += statistics.mean(self._between_s or [0.0])
        return max(self.total - step, 0) * step_s + self._evaluations_left(record) * self._evaluation_s

    def _evaluations_left(self, record: dict[str, Any]) -> int:
        """Count the evaluations after a step, with its own if that is still to come. The last step always has one."""
        step, total = int(record["step"]), self.total or 0
        every = self._eval_steps or max(total, 1)
        is_due = (step % every == 0 or step >= total) and "evaluation_s" not in record
        later = -(-total // every) - step // every if step < total else 0
        return later + is_due


class PlainProgress:
    """Prints log lines where there is no terminal: every event, some steps, and a sign of life during silence."""

    def __init__(self, stream: TextIO, *, clock: Clock = time.monotonic, background: bool = True) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.RLock()
        self._pace = Pace()
        self._phase, self._phase_at = "starting", clock()
        self._evaluates = False
        self._printed_at = clock()
        self._newest_at = datetime.datetime.min.replace(tzinfo=datetime.UTC)  # time stamp of the last line
        self._step_printed_at: float | None = None
        self._printed_step: int | None = None
        self._unprinted: dict[str, Any] | None = None
        self._closed = threading.Event()
        if background:
            threading.Thread(target=self._keep_alive, name="progress", daemon=True).start()

    def event(self, event: Event) -> None:
        with self._lock:
            if event.kind == "phase":
                self._enter(format_phase(event))
            if event.kind == "evaluated":
                self._enter("training")
            if event.kind in ("phase", "evaluated"):
                self._evaluates = event.data.get("phase") == "evaluate"
            self._pace.event(event)
            if event.kind in ("ended", "failed") or event.data.get("phase") == "evaluate":
                self._print_pending()
            self._print(event_text(event), event.at)

    def step(self, record: dict[str, Any]) -> None:
        with self._lock:
            line = step_line(record, self._pace.total, self._pace.eta_s(record))
            if not self._evaluates:  # the evaluated step may be seen after its evaluation has begun
                self._enter("training")
            if record["step"] == self._printed_step:  # the step again, now with its evaluation, which an event showed
                return
            now, last = self._clock(), self._step_printed_at
            self._unprinted = record
            if last is None or now - last >= STEP_LINE_INTERVAL_S or record["step"] == self._pace.total:
                self._step_printed_at, self._unprinted, self._printed_step = now, None, record["step"]
                self._print(line)

    def sign_of_life(self) -> None:
        """Print a line if nothing was printed for SILENCE_S. Called every second."""
        with self._lock:
            now = self._clock()
            if now - self._printed_at >= SILENCE_S:
                self._print(f"still {self._phase} ({duration(now - self._phase_at)})")

    def close(self) -> None:
        with self._lock:
            self._print_pending()
            self._closed.set()

    def _enter(self, phase: str) -> None:
        if phase != self._phase:
            self._phase, self._phase_at = phase, self._clock()

    def _print_pending(self) -> None:
        record, self._unprinted = self._unprinted, None
        # The step before an evaluation may be seen after the evaluated step; its line would then be out of order.
        if record is not None and record["step"] > (self._printed_step or 0):
            self._printed_step = record["step"]
            self._print(step_line(record, self._pace.total, None))

    def _print(self, text: str, at: datetime.datetime | None = None) -> None:
        """Print a line, never with an earlier time than the line above; steps are seen some seconds after their end."""
        now = datetime.datetime.now(datetime.UTC)
        self._newest_at = at = max((at or now).astimezone(datetime.UTC), self._newest_at)
        self._printed_at = self._clock()
        with contextlib.suppress(OSError, ValueError):  # its reader is gone, or its disk is full
            print(f"{when(at)} {text}", file=self._stream, flush=True)

    def _keep_alive(self) -> None:
        while not self._closed.wait(1.0):
            self.sign_of_life()


def event_text(event: Event) -> str:
    """Return the text of an event for people. Warnings are marked: not every display has colours."""
    return f"warning: {event.message}" if event.kind == "warning" else event.message


def format_phase(event: Event) -> str:
    """Describe the phase, as it reads after "still"."""
    return "starting" if event.data.get("phase") == "start" else event.message


def step_line(record: dict[str, Any], total: int | None, eta_s: float | None) -> str:
    """Format a step: `step 120/900  epoch 0.40  loss 0.4312  lr 9.1e-05  grad_norm 1.2  1,234 tokens/s  eta 3m20s`."""
    parts = [f"step {record['step']}" + (f"/{total}" if total else "")]
    parts += [shape.format(record[key]) for key, shape in _SHAPES if record.get(key) is not None]
    held_out = {name: value for name, value in record.items() if name.startswith("eval_")}
    parts += metric_items(held_out, prefix="eval_")
    if eta_s is not None:
        parts.append(f"eta {duration(eta_s)}")
    return "  ".join(parts)


_SHAPES = (
    ("epoch", "epoch {:.2f}"),
    ("loss", "loss {:.4f}"),
    ("learning_rate", "lr {:.2g}"),
    ("grad_norm", "grad_norm {:.3g}"),
    ("tokens_per_s", "{:,.0f} tokens/s"),
)
