"""Output of `fleetune plan --accuracy`: predicted and measured memory and time of past runs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from jobs.preflight.plan_text import gib
from jobs.run.run_plan import PlanCheck
from orchestrator.pages.tables import columns


def format_plan(check: PlanCheck) -> str:
    """Describe one run's plan in a line."""
    memory = f"{gib(check.predicted_bytes)} GiB predicted"
    if check.measured_bytes is not None:
        memory += f", {gib(check.measured_bytes)} measured ({_signed(_memory_error(check))})"
    step = f"step {_seconds(check.predicted_step_s)} predicted"
    if check.measured_step_s is not None:
        step += f", {_seconds(check.measured_step_s)} measured"
    return f"{memory}; {step}"


def accuracy_page(checks: Mapping[str, PlanCheck]) -> str:
    """Format a table of runs with a plan, with median and worst errors below it."""
    rows = [
        (
            name,
            check.machines,
            gib(check.predicted_bytes),
            "" if check.measured_bytes is None else gib(check.measured_bytes),
            _signed(_memory_error(check)),
            _seconds(check.predicted_step_s),
            _seconds(check.first_steps_s),
            _seconds(check.measured_step_s),
            _signed(_eta_error(check)),
        )
        for name, check in checks.items()
    ]
    head = ("RUN", "MACHINES", "GIB", "MEASURED", "ERROR", "STEP", "FIRST STEPS", "MEASURED", "ERROR")
    found = accuracy_json(checks)
    lines = [
        f"{title}: median {100 * found[key]['median']:.1f} %, worst {100 * found[key]['worst']:.1f} % "
        f"of {found[key]['runs']} runs"
        for key, title in (("memory", "memory"), ("step_after_first_steps", "step time, from the first steps"))
        if found[key]["runs"]
    ]
    return "\n\n".join([columns(head, rows), "\n".join(lines) or "no run with a plan has completed a step yet"])


def accuracy_json(checks: Mapping[str, PlanCheck]) -> dict[str, Any]:
    """Return the runs, and a summary of their absolute relative errors."""

    def summed(errors: list[float | None]) -> dict[str, Any]:
        known = [abs(error) for error in errors if error is not None]
        return {
            "runs": len(known),
            "median": statistics.median(known) if known else None,
            "worst": max(known, default=None),
        }

    return {
        "runs": {name: check.model_dump(mode="json") for name, check in checks.items()},
        "memory": summed([_memory_error(check) for check in checks.values()]),
        "step": summed([_error(check.predicted_step_s, check.measured_step_s) for check in checks.values()]),
        "step_after_first_steps": summed([_eta_error(check) for check in checks.values()]),
    }


def _memory_error(check: PlanCheck) -> float | None:
    return _error(check.predicted_bytes, check.measured_bytes)


def _eta_error(check: PlanCheck) -> float | None:
    return _error(check.first_steps_s, check.measured_step_s)


def _error(predicted: float | None, measured: float | None) -> float | None:
    return predicted / measured - 1 if predicted is not None and measured else None


def _signed(error: float | None) -> str:
    return "" if error is None else f"{100 * error:+.1f} %"


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.3g} s"
