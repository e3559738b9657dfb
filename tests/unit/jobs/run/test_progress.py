"""What is printed while a run goes on: not too much, and never nothing for long."""

from __future__ import annotations

import contextlib
import datetime
import errno
import io
from pathlib import Path
from typing import Any

import pytest

from cluster.text import duration
from jobs.run.events import Announcer, Watch
from jobs.run.outcome import Event, event
from jobs.run.paths import JobPaths
from jobs.run.progress import NoProgress, Pace, PlainProgress, Progress, step_line
from jobs.storage.journal import JournalWriter, read_journal
from orchestrator.cli.displays import BarProgress

LONG_AGO = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Watched:
    """A PlainProgress on a clock of its own, and what it printed without the times."""

    def __init__(self) -> None:
        self.clock, self.stream = Clock(), io.StringIO()
        self.progress = PlainProgress(self.stream, clock=self.clock, background=False)

    @property
    def lines(self) -> list[str]:
        return [line.split(" ", 2)[2] for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def watched() -> Watched:
    return Watched()


def record(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": step / 100,
        "loss": 0.43117,
        "learning_rate": 9.13e-5,
        "tokens_per_s": 1234.4,
        **more,
    }


def test_step_line_reads_as_documented() -> None:
    line = step_line(record(40, grad_norm=1.204), 900, 200.4)
    assert line == "step 40/900  epoch 0.40  loss 0.4312  lr 9.1e-05  grad_norm 1.2  1,234 tokens/s  eta 3m20s"


def test_step_line_leaves_out_what_is_not_known() -> None:
    assert step_line({"step": 3, "loss": float("nan"), "grad_norm": None}, None, None) == "step 3  loss nan"


def test_evaluated_values_are_part_of_the_line() -> None:
    assert step_line({"step": 3, "eval_accuracy": 0.5033}, None, None).endswith("eval_accuracy 0.5033")


def test_events_are_printed_at_once_with_utc_time(watched: Watched) -> None:
    happened = event("phase", "training")
    watched.progress.event(happened)
    assert watched.stream.getvalue() == f"{happened.at:%Y-%m-%d %H:%M:%SZ} training\n"


def test_a_warning_is_marked_as_one(watched: Watched) -> None:
    watched.progress.event(event("warning", "data.seq_len (64) cuts 40% of the samples"))
    assert watched.stream.getvalue().endswith("Z warning: data.seq_len (64) cuts 40% of the samples\n")


def test_steps_are_printed_every_ten_seconds_and_always_the_first_and_the_last(watched: Watched) -> None:
    watched.progress.event(event("plan", "25 steps", total_steps=25))
    for step in range(1, 26):
        watched.progress.step(record(step))
        watched.clock.now_s += 1.0
    assert [line.split()[1] for line in watched.lines[1:]] == ["1/25", "11/25", "21/25", "25/25"]


def test_last_step_of_a_run_that_stops_early_is_printed_once(watched: Watched) -> None:
    for step in (1, 2, 3):
        watched.progress.step(record(step))
    watched.progress.event(event("failed", "out of memory"))
    watched.progress.close()
    watched.progress.close()
    assert [line.split("  ")[0] for line in watched.lines] == ["step 1", "step 3", "out of memory"]


def test_step_stands_before_its_evaluation_and_only_once(watched: Watched, tmp_path: Path) -> None:
    paths = JobPaths(str(tmp_path))
    watch = Watch(paths, watched.progress)
    events, metrics = JournalWriter(paths.events, "rank-0"), JournalWriter(paths.metrics, "rank-0")
    for step in (1, 2):
        metrics.append(record(step))
    evaluating = event("phase", "evaluating", phase="evaluate", record=record(3))
    for happened in (evaluating, event("evaluated", "after step 3", step=3)):
        events.append(happened.model_dump(mode="json"))
    metrics.append(record(3, eval_loss=0.5))
    events.close()
    metrics.close()
    watch.look()
    watched.progress.close()
    assert [line.split("  ")[0] for line in watched.lines] == ["step 1", "step 3", "evaluating", "after step 3"]


@pytest.mark.parametrize(("root", "shown"), [("memory://looks/a", []), ("", ["step 1"])])
def test_remote_storage_is_listed_once_in_five_seconds(
    watched: Watched, tmp_path: Path, own_protocols: None, root: str, shown: list[str]
) -> None:
    paths = JobPaths(root or str(tmp_path))
    watch = Watch(paths, watched.progress)
    watch.look_when_due()
    metrics = JournalWriter(paths.metrics, "rank-0")
    metrics.append(record(1))
    metrics.close()
    watch.look_when_due()
    assert [line.split("  ")[0] for line in watched.lines] == shown
    watch.look()
    assert [line.split("  ")[0] for line in watched.lines] == ["step 1"]


def test_time_to_the_end_is_that_of_the_steps_and_of_the_evaluations_that_are_left() -> None:
    """A step takes 1.5 s, the first one 12 s, the time between two steps 0.5 s, and an evaluation 40 s."""
    pace, at = Pace(), 1000.0
    pace.event(event("plan", "100 steps", total_steps=100, eval_steps=40))
    pace.event(event("evaluated", "before training", step=0, seconds=30.0))
    found = {}
    for step in range(1, 101):
        took_s = 12.0 if step == 1 else 1.5
        at += took_s + 0.5
        done = record(step, at=at, step_time_s=took_s)
        found[step] = pace.eta_s(done)
        if step in (40, 80, 100):
            at += 40.0
            pace.event(event("evaluated", "", step=step, seconds=40.0))
            assert pace.eta_s(done | {"evaluation_s": 40.0}) == (100 - step) * 2.0 + {40: 2, 80: 1, 100: 0}[step] * 40.0
    assert found[1] == 99 * 12.0 + 3 * 30.0
    assert {step: found[step] for step in (4, 40, 41, 79, 80, 99, 100)} == {
        4: 96 * 2.0 + 3 * 30.0, 40: 60 * 2.0 + 3 * 30.0, 41: 59 * 2.0 + 2 * 40.0, 79: 21 * 2.0 + 2 * 40.0,
        80: 20 * 2.0 + 2 * 40.0, 99: 2.0 + 40.0, 100: 40.0,
    }  # fmt: skip
    went_back = record(41, at=at + 7.0, step_time_s=3.0)
    assert pace.eta_s(went_back) == 59 * 3.0 + 2 * 40.0, "only steps since then count"
    assert pace.eta_s(record(42, at=at + 12.0, step_time_s=3.0)) == 58 * 5.0 + 2 * 40.0


def test_the_first_two_steps_are_slow_and_do_not_count() -> None:
    pace = Pace()
    pace.event(event("plan", "100 steps", total_steps=100))
    found = [pace.eta_s(record(step, step_time_s=5.0 if step < 3 else 2.0)) for step in range(1, 11)]
    assert found == [99 * 5.0, 98 * 5.0, *((100 - step) * 2.0 for step in range(3, 11))]


def test_memory_that_is_touched_for_the_first_time_counts_for_no_later_step() -> None:
    pace, at = Pace(), 1000.0
    pace.event(event("plan", "100 steps", total_steps=100))
    for step, first_touch_s in enumerate((3.0, 4.0, 2.5), 1):
        at += 2.0 + first_touch_s
        left_s = pace.eta_s(record(step, at=at, step_time_s=2.0 + first_touch_s, first_touch_s=first_touch_s))
    assert left_s == 97 * 2.0, "nor for the time between steps"


def test_steps_of_different_length_count_by_their_mean_and_one_that_was_held_up_hardly() -> None:
    pace = Pace()
    pace.event(event("plan", "1000 steps", total_steps=1000))
    for step in range(1, 101):
        left_s = pace.eta_s(record(step, step_time_s=300.0 if step == 80 else 1.0 + step % 3))
    assert left_s == pytest.approx(900 * 2.0, rel=0.03)


@pytest.mark.parametrize("by_tokens", [0.0, 0.5, 1.0])
def test_a_step_counts_as_one_with_the_mean_tokens(by_tokens: float) -> None:
    """The third step is the first that counts, and has a third more tokens than the mean."""
    pace = Pace()
    pace.event(event("plan", "1000 steps", total_steps=1000, computed_tokens_per_step=300.0))
    for step in range(1, 101):
        tokens = 100 * (2 + (step + 2) % 3)
        took_s = (1 - by_tokens) * 2.0 + by_tokens * 2.0 * tokens / 300
        left_s = pace.eta_s(record(step, computed_tokens=tokens, step_time_s=took_s))
        if step == 3:
            assert tokens == 400 and left_s == pytest.approx(997 * 2.0, rel=0.17 if by_tokens != 0.5 else 1e-6)
        if step >= 20:
            assert left_s == pytest.approx((1000 - step) * 2.0, rel=0.04)


def test_a_run_without_evaluations_or_of_an_unknown_length_has_no_time_for_them() -> None:
    pace = Pace()
    assert pace.eta_s(record(1, step_time_s=2.0)) is None
    pace.event(event("plan", "30 steps", total_steps=30))
    assert pace.eta_s(record(10, step_time_s=2.0)) == 40.0
    assert pace.eta_s(record(11, step_time_s=2.0)) == 38.0, "records of an earlier release have no time"


def test_silence_is_broken_after_half_a_minute_with_the_phase(watched: Watched) -> None:
    watched.progress.event(event("phase", "loading the model"))
    for _ in range(65):
        watched.clock.now_s += 1.0
        watched.progress.sign_of_life()
    assert watched.lines[1:] == ["still loading the model (30 s)", "still loading the model (1m00s)"]


def test_first_phase_is_called_starting_and_steps_are_called_training(watched: Watched) -> None:
    watched.progress.event(event("phase", "run x in /runs/x", phase="start"))
    watched.clock.now_s = 30.0
    watched.progress.sign_of_life()
    watched.progress.step(record(1))
    watched.clock.now_s = 75.0
    watched.progress.sign_of_life()
    assert watched.lines[1] == "still starting (30 s)" and watched.lines[-1] == "still training (45 s)"


def test_the_run_trains_again_once_the_evaluation_is_over(watched: Watched) -> None:
    """The evaluated step may be seen after its evaluation has begun."""
    watched.progress.event(event("phase", "evaluating on 6 held-out rows", phase="evaluate"))
    watched.progress.step(record(100))
    watched.clock.now_s = 30.0
    watched.progress.sign_of_life()
    assert watched.lines[-1] == "still evaluating on 6 held-out rows (30 s)"
    watched.progress.event(event("evaluated", "after step 100: loss 5.153", step=100))
    watched.clock.now_s = 60.0
    watched.progress.sign_of_life()
    assert watched.lines[-1] == "still training (30 s)"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1m00s"), (200, "3m20s"), (7530, "2h05m"), (360000, "100h00m")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("make", [NoProgress, lambda: PlainProgress(io.StringIO()), lambda: BarProgress(io.StringIO())])
def test_every_progress_takes_every_event_and_closes_twice(make: Any) -> None:
    progress: Progress = make()
    for kind in ("phase", "plan", "evaluated", "checkpoint", "exported", "warning", "failed", "ended", "unheard-of"):
        progress.event(event(kind, f"[bold]{kind}[/x]", total_steps=3))
        progress.step(record(1))
        progress.step({"step": 2, "loss": float("nan"), "eval_loss": 1.0})
    progress.close()
    progress.close()


def test_bar_says_training_once_an_evaluation_is_over() -> None:
    progress = BarProgress(io.StringIO(), width=200)
    progress.event(event("phase", "evaluating on 6 held-out rows", phase="evaluate"))
    progress.event(event("evaluated", "before training: loss 5.153", step=0))
    (task,) = progress._bar.tasks
    assert task.description == "training"
    progress.close()


def test_bar_prints_events_as_they_are_written() -> None:
    stream = io.StringIO()
    progress = BarProgress(stream, width=200)
    progress.event(event("warning", "odd [bold]path[/bold] in /tmp/[x]"))
    progress.step(record(7))
    progress.event(event("ended", "succeeded"))
    progress.close()
    printed = stream.getvalue()
    assert "odd [bold]path[/bold] in /tmp/[x]" in printed
    assert printed.index("step 7") < printed.index("succeeded")


def test_a_step_that_is_seen_after_a_later_one_is_not_printed_at_the_end(watched: Watched) -> None:
    watched.progress.event(event("plan", "training 5 steps", total_steps=5))
    watched.progress.step(record(5))
    watched.progress.step(record(4))
    watched.progress.event(event("ended", "succeeded"))
    assert [line.split("  ")[0] for line in watched.lines] == ["training 5 steps", "step 5/5", "succeeded"]


def test_times_never_go_back(watched: Watched) -> None:
    """The step is printed when it is seen; the evaluation that came after it says when it began."""
    watched.progress.step(record(1))
    watched.progress.event(event("phase", "evaluating", phase="x").model_copy(update={"at": LONG_AGO}))
    first, second = (" ".join(line.split(" ")[:2]) for line in watched.stream.getvalue().splitlines())
    assert LONG_AGO.strftime("%Y-%m-%d") < first <= second


class _Broken(io.StringIO):
    """A pipe whose reader is gone, or a terminal that was closed."""

    def write(self, text: str) -> int:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


class _BrokenDisplay(NoProgress):
    def event(self, event: Event) -> None:
        raise OSError(errno.EIO, "Input/output error")

    def step(self, record: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("display", [PlainProgress(_Broken(), background=False), _BrokenDisplay()])
def test_a_display_that_cannot_be_written_does_not_end_the_run(tmp_path: Path, display: Progress) -> None:
    paths = JobPaths(str(tmp_path))
    watch = Watch(paths, display)
    with contextlib.closing(Announcer(paths, display)) as announce:
        announce("phase", "training", phase="train")
    for writer, written in (
        (JournalWriter(paths.metrics, "rank-0"), record(1)),
        (JournalWriter(paths.events, "rank-0"), event("evaluated", "loss 1").model_dump(mode="json")),
    ):
        writer.append(written)
        writer.close()
    watch.look()
    assert watch.newest is not None and watch.newest["step"] == 1


def test_an_event_that_is_only_recorded_is_stored_and_not_shown(tmp_path: Path) -> None:
    shown, paths = io.StringIO(), JobPaths(str(tmp_path))
    with contextlib.closing(Announcer(paths, PlainProgress(shown, background=False))) as announce:
        announce("remedy", "rank 1 hangs and is killed")
        announce.record("remedy", "training goes on", seconds=1.5)
    _, told, recorded = read_journal(paths.events)
    assert told["message"] in shown.getvalue() and recorded["message"] not in shown.getvalue()
    assert recorded["data"] == {"seconds": 1.5}
