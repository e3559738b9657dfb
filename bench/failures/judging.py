"""Compares a run that has a planted failure with the expected result. Pure functions."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from jobs.run.outcome import Outcome
from jobs.storage.journal import Record

# Lines that a user must never see: tracebacks, and what libraries print for their developers.
NOISE = re.compile(
    r"^Traceback|^  File \"|\w*Warning: |warnings\.warn|site-packages/|docs\.ray\.io|docs\.nvidia\.com"
    r"|\(pid=\d|\(RayTrain"
    r"|^\[rank\d|\[W\d{3}|gloo/transport|unexpected \w+Error",
    re.MULTILINE,
)


class Kind(StrEnum):
    SPEC = "spec"
    DATA = "data"
    SHAPES = "shapes"
    CODE = "code"
    MEMORY = "memory"
    NUMERICS = "numerics"
    STORAGE = "storage"
    MACHINES = "machines"
    NETWORK = "network"


@dataclass(frozen=True)
class Expected:
    """The expected result of a case.

    Attributes:
        exit: exit code of the command.
        says: short phrases that name the cause; each is in the reason of the outcome, an event or the output.
        advice: short phrases that say what to change or to do, read in the same places.
        outcome: fields of outcome.json, as a program reads them.
        acts: of the run's events of kind `remedy`, in order: the values of their fields `remedy`, `stage` and `field`;
            with a star if the same act follows itself.
        starts: worker groups that begin to train; 0: the run is refused before workers start.
    """

    exit: int
    says: tuple[str, ...]
    advice: tuple[str, ...] = ()
    outcome: Mapping[str, Any] = field(default_factory=dict)
    acts: tuple[str, ...] = ()
    starts: int = 0


@dataclass(frozen=True)
class Seen:
    """The result of a run. `output` is everything that the user saw; `outcome` is None if the run was refused."""

    exit: int
    output: str
    outcome: Outcome | None = None
    events: tuple[Record, ...] = ()
    starts: int = 0
    seconds: float = 0.0

    @property
    def acts(self) -> tuple[str, ...]:
        """The remedies, without the events about their effect and their sum."""
        told = [event["data"] for event in self.events if event["kind"] == "remedy"]
        once = [act_of(data) for data in told if data.get("stage") != "summary" and "seconds" not in data]
        runs = [list(same) for _, same in itertools.groupby(once)]
        return tuple(same[0] + ("*" if len(same) > 1 else "") for same in runs)


def act_of(data: Mapping[str, Any]) -> str:
    """Name a remedy by its fields, as `out_of_memory train.per_device_train_batch_size` or `outlier_steps skip`."""
    return " ".join(str(data[name]) for name in ("remedy", "stage", "field") if data.get(name))


def problems(expected: Expected, seen: Seen) -> list[str]:
    """List the differences. Each begins with the part that differs: cause, advice, act, starts or output."""
    outcome = seen.outcome.model_dump(mode="json") if seen.outcome else {}
    told = "\n".join([seen.output, str(outcome.get("reason", "")), *(one["message"] for one in seen.events)])
    found = [f"cause: {phrase!r} is not said" for phrase in expected.says if phrase not in told]
    found += [f"advice: {phrase!r} is not said" for phrase in expected.advice if phrase not in told]
    for name, value in expected.outcome.items():
        if outcome.get(name) != value:
            found.append(f"cause: {name} of the outcome is {outcome.get(name)!r}, not {value!r}")
    if seen.exit != expected.exit:
        found.append(f"act: exit code {seen.exit}, not {expected.exit}")
    if seen.acts != expected.acts:
        found.append(f"act: {', '.join(seen.acts) or 'none'}, not {', '.join(expected.acts) or 'none'}")
    if seen.starts != expected.starts:
        found.append(f"starts: {seen.starts}, not {expected.starts}")
    found += [f"output: {line.strip()[:160]!r}" for line in seen.output.splitlines() if NOISE.search(line)][:3]
    return found
