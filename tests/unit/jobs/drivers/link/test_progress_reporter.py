"""What a driver's server hears of a run's progress."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.drivers.link.progress_reporter import ProgressReporter
from jobs.run.outcome import event
from jobs.run.progress import NoProgress


class Heard:
    def __init__(self) -> None:
        self.known: dict[str, Any] = {}

    def tell(self, **known: Any) -> None:
        self.known |= known

    def close(self) -> None: ...


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def reporting() -> tuple[ProgressReporter, Heard, Clock]:
    heard, clock = Heard(), Clock()
    return ProgressReporter(NoProgress(), heard, ("a", "b", "b"), clock), heard, clock


def step(number: int, **more: Any) -> dict[str, Any]:
    return {"step": number, "loss": 2.0, "step_time_s": 3.0, "chain": "ab", "max_memory_bytes": 1, **more}


def test_the_run_and_its_length_are_told_as_soon_as_they_are_known() -> None:
    told, heard, _ = reporting()
    told.event(event("phase", "run a in /runs/a", phase="start", root="/runs/a", resumed=False))
    assert heard.known == {"run": "/runs/a"}
    told.event(event("plan", "training 9 steps", total_steps=9))
    assert heard.known["total_steps"] == 9


def test_the_workers_that_are_kept_are_told_by_their_nodes() -> None:
    told, heard, _ = reporting()
    told.event(event("phase", "given back", phase="given-back", workers=[0, 2]))
    assert heard.known == {"keeps": ("a", "b")}
    without = ProgressReporter(NoProgress(), heard)
    without.event(event("phase", "given back", phase="given-back", workers=[0]))
    assert heard.known == {"keeps": ("a", "b")}, "one of a single machine holds what it has"


def test_nodes_that_leave_and_faulty_ones_are_told() -> None:
    told, heard, _ = reporting()
    told.event(event("draining", "it leaves", nodes=["a"]))
    told.event(event("faulty", "ranks on host x have hung 2 times in this run", nodes=["b"], host="x"))
    assert heard.known == {"draining": ("a",), "faulty": ("b",)}


def test_what_is_left_is_measured_and_metrics_are_those_for_people() -> None:
    told, heard, clock = reporting()
    told.event(event("plan", "", total_steps=10))
    for number in range(1, 5):
        clock.now_s += 2.0
        told.step(step(number, learning_rate=0.5, at=clock.now_s, step_time_s=2.0))
    assert heard.known["step"] == 4 and heard.known["remaining_s"] == 12.0
    assert heard.known["metrics"] == {"loss": 2.0, "learning_rate": 0.5}
    told.event(event("evaluated", "", step=4, metrics={"eval_loss": 1.5}))
    assert heard.known["metrics"] == {"eval_loss": 1.5}


def test_before_the_first_step_what_is_left_is_planned() -> None:
    told, heard, _ = reporting()
    told.event(event("planned", "about 2 min for 60 steps", step_s=2.0, remaining_s=120.0))
    assert heard.known["remaining_s"] == 120.0
    told.event(event("plan", "", total_steps=60))
    told.step(step(1, at=0.0))
    assert heard.known["remaining_s"] == 59 * 3.0


def test_an_interruption_costs_the_start_and_the_steps_that_no_checkpoint_holds() -> None:
    told, heard, clock = reporting()
    clock.now_s = 500.0  # preparing the data, which is done once
    told.event(event("phase", "starting 2 workers", phase="workers"))
    clock.now_s += 20.0
    told.step(step(1))
    assert heard.known["interruption_cost_s"] == 20.0 + 3.0
    told.step(step(2))
    told.step(step(3))
    assert heard.known["interruption_cost_s"] == 20.0 + 9.0
    told.event(event("checkpoint", "", step=2, seconds=4.0))
    assert heard.known["metrics"]["checkpoint_s"] == 4.0
    assert heard.known["interruption_cost_s"] == 20.0 + 3.0


def test_a_run_that_goes_on_has_lost_nothing_yet() -> None:
    told, heard, clock = reporting()
    told.event(event("phase", "starting", phase="workers"))
    clock.now_s = 7.0
    told.event(event("phase", "resumed", phase="resumed", step=100))
    assert heard.known["step"] == 100 and heard.known["interruption_cost_s"] == 7.0
    told.step(step(101))
    assert heard.known["interruption_cost_s"] == 7.0 + 3.0


def test_a_run_that_goes_back_has_to_compute_the_steps_since_the_earlier_checkpoint_again() -> None:
    told, heard, _ = reporting()
    told.step(step(300))
    told.event(event("checkpoint", "", step=300))
    told.event(event("remedy", "", remedy="outlier_steps", stage="rollback", step=310, to_step=100))
    assert (heard.known["step"], heard.known["saved_step"]) == (100, 100)
    told.step(step(150))
    assert (heard.known["step"], heard.known["interruption_cost_s"]) == (150, 50 * 3.0)
    told.event(event("checkpoint", "", step=200))
    assert (heard.known["step"], heard.known["saved_step"]) == (200, 200)
    told.event(event("remedy", "", remedy="forgetting", stage="lower_rate", step=210, to_step=0))
    assert (heard.known["step"], heard.known["saved_step"]) == (0, 0), "without a checkpoint it begins again"
    told.step(step(9))
    told.event(event("remedy", "", remedy="forgetting", stage="stop", step=9, to_step=4))
    assert heard.known["step"] == 9, "the run ends, and the best checkpoint is exported"


@pytest.mark.parametrize("resumed", [200, None])
def test_workers_that_start_again_from_an_earlier_checkpoint_or_anew_are_told_so(resumed: int | None) -> None:
    """The newest checkpoint was damaged."""
    told, heard, _ = reporting()
    told.step(step(300))
    told.event(event("checkpoint", "", step=300))
    told.event(event("plan", "", total_steps=900))
    if resumed is not None:
        told.event(event("phase", "resumed", phase="resumed", step=resumed))
        assert (heard.known["step"], heard.known["saved_step"]) == (resumed, resumed)
    first = (resumed or 0) + 1
    told.step(step(first))
    assert (heard.known["step"], heard.known["interruption_cost_s"]) == (first, 3.0)


def test_of_a_sweep_the_steps_of_all_trials_are_told_and_each_has_a_checkpoint() -> None:
    told, heard, clock = reporting()
    told.event(event("phase", "starting 2 gangs", phase="workers"))
    clock.now_s = 30.0
    facts = {"step": 25, "total_steps": 175, "metrics": {"eval_loss": 0.5, "trials": 1.0}, "remaining_s": 90.0}
    told.event(event("trial", "trial 1: loss 0.5", trial=1, state="paused", **facts))
    assert heard.known == {**facts, "saved_step": 25, "interruption_cost_s": 30.0}
    clock.now_s = 60.0
    told.event(event("trial", "trial 2: failed", trial=2, state="failed", step=25, metrics={}))
    assert heard.known["interruption_cost_s"] == 30.0, "as long as the gangs took to start, and not longer"


def test_the_steps_of_a_final_run_come_after_those_of_the_trials() -> None:
    told, heard, clock = reporting()
    told.event(event("trial", "", step=30, total_steps=30, metrics={"eval_loss": 0.5}))
    told.event(event("phase", "", phase="final", steps=30))
    told.event(event("plan", "", total_steps=10))
    assert (heard.known["step"], heard.known["total_steps"]) == (30, 40)
    for number in (1, 2, 3):
        clock.now_s += 2.0
        told.step(step(number, at=clock.now_s, step_time_s=2.0))
    told.event(event("checkpoint", "", step=2))
    assert (heard.known["step"], heard.known["saved_step"], heard.known["remaining_s"]) == (33, 32, 14.0)


def test_of_a_comparison_the_methods_that_are_left_are_counted_as_the_one_that_is_searched() -> None:
    told, heard, _ = reporting()
    told.event(event("phase", "comparison c in /runs/c", phase="start", root="/runs/c"))
    steps = {"before": 100, "done": 15}
    told.event(event("phase", "method 2 of 3: lora", phase="method", method="lora", steps=steps, left=1))
    assert (heard.known["step"], heard.known["saved_step"]) == (115, 115)
    told.event(event("phase", "sweep lora in /runs/c/methods/lora", phase="start", root="/runs/c/methods/lora"))
    assert heard.known["run"] == "/runs/c"
    facts = {"step": 20, "total_steps": 80, "metrics": {"eval_loss": 0.5}, "remaining_s": 60.0}
    told.event(event("trial", "trial 1: loss 0.5", **facts))
    assert (heard.known["step"], heard.known["saved_step"], heard.known["total_steps"]) == (120, 120, 260)
    assert heard.known["remaining_s"] == pytest.approx(60.0 + 80.0)
    told.event(event("trial", "", step=80, total_steps=80, metrics={}, remaining_s=0.0))
    assert heard.known["remaining_s"] == pytest.approx(140.0), "no steps are left to measure the next method by"
    steps = {"before": 180, "done": 0}
    told.event(event("phase", "method 3 of 3: prompt", phase="method", method="prompt", steps=steps, left=0))
    told.event(event("trial", "", step=80, total_steps=80, metrics={}, remaining_s=0.0))
    assert (heard.known["step"], heard.known["total_steps"], heard.known["remaining_s"]) == (260, 260, 0.0)
    told.event(event("phase", "all methods have ended", phase="compared", metrics={"eval_loss": 0.25}))
    assert heard.known["metrics"] == {"eval_loss": 0.25}
