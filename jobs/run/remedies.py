"""The acts of remedies: their events, the troubles that follow from these, and the changes in `remedies.json`.

`remedies.json` has the changes of the spec that were made after the run ran out of memory. A later attempt begins with
them, so that it does not run out of memory again. Light to import.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from pydantic import Field

from cluster.text import many
from jobs.frozen import Shown
from jobs.run.paths import JobPaths
from jobs.storage import files as storage

REMEDIES_VERSION: Final = 1
_MOST_SHOWN: Final = 10  # troubles in a text for people
MACHINE: Final = "machine"  # the trouble of an attempt that ended because of a machine or the storage
OVERFITTING: Final = "overfitting"  # the trouble of a run whose held-out loss rises while its training loss falls
# Troubles after which the workers start again from a checkpoint, and may skip the same steps again.
_STARTS_AGAIN: Final = ("out_of_memory", "lost_workers", "hang", MACHINE)
_RETURNS: Final = ("outlier_steps", "forgetting")  # after which a run may go back to an earlier state


class Remedy(Shown):
    """One change of one field of the spec, and its cost."""

    at: datetime.datetime = Field(description="UTC.")
    cause: str = Field(description="Which process lacked which memory, with the numbers.")
    action: str = Field(description="What was changed.")
    where: str = Field(description="What the run did at that time: loading, training, evaluation or export.")
    rung: str = Field(description="The kind of change.")
    field: str = Field(description="Dotted name of the changed field of the spec.")
    before: Any = Field(description="Its value before.")
    after: Any = Field(description="Its value since then.")
    also: dict[str, Any] = Field(
        default_factory=dict, description="Other fields of the spec that keep the global batch, by dotted name."
    )
    gpus_per_worker: int = Field(ge=0, description="GPUs of each worker.")
    accelerator_type: str | None = Field(None, description="Type of these GPUs, if the spec names one.")
    from_step: int = Field(ge=0, description="Step of the checkpoint from which the run started again.")
    steps_again: int = Field(ge=0, description="Steps after that checkpoint, which are computed again.")
    seconds: float | None = Field(
        None, ge=0, description="From the failure to the end of the next step; None if there was no next step."
    )


def read_remedies(paths: JobPaths) -> tuple[Remedy, ...]:
    """Read the changes of all attempts, oldest first; () if there are none.

    Raises:
        StorageError: the file cannot be read, or a newer release wrote it.
    """

    def parse(raw: dict[str, Any]) -> tuple[Remedy, ...]:
        return tuple(Remedy.model_validate(one) for one in raw["remedies"])

    found: tuple[Remedy, ...] | None = storage.read_versioned(paths.remedies, REMEDIES_VERSION, parse)
    return found or ()


def write_remedies(paths: JobPaths, remedies: Sequence[Remedy]) -> None:
    content = {"version": REMEDIES_VERSION, "remedies": [one.model_dump(mode="json") for one in remedies]}
    storage.write_bytes(paths.remedies, json.dumps(content, indent=1).encode())


def next_time(remedies: Sequence[Remedy]) -> str | None:
    """Return the change of the spec with which a new run avoids these failures; None without remedies."""
    newest = {name: value for one in remedies for name, value in ({one.field: one.after} | one.also).items()}
    if not newest:
        return None
    return f"set {', '.join(f'{name}: {json.dumps(value)}' for name, value in newest.items())} in the spec"


class RemedyReport(NamedTuple):
    """One act of a remedy, for an event of kind `remedy`.

    Attributes:
        remedy: its name: out_of_memory, lost_workers, hang, straggler, outlier_steps, forgetting, overfitting,
            early_stopping or machine.
        cause, action, effect: clauses that make one sentence for people.
        advice: a clause that says what to change in the next run.
        steps_again: steps that are computed again.
    """

    remedy: str
    cause: str
    action: str
    effect: str
    advice: str | None = None
    steps_again: int = 0

    def tell(self, event: Callable[..., None], message: str | None = None, **facts: Any) -> None:
        """Pass an event on to `event`, which is called as `Announcer` is. `facts`: its data, beside the attributes."""
        event("remedy", message or self.message, **facts, **self._asdict())

    @property
    def message(self) -> str:
        return f"{self.cause}. Remedy: {self.action}; {self.effect}"


class Trouble(Shown):
    """Something that went wrong in a run, and what the run did about it."""

    remedy: str = Field(description="One of the spec's `remedies`, overfitting, early_stopping or machine.")
    at: datetime.datetime = Field(description="UTC.")
    step: int | None = Field(None, ge=0, description="The step after which the run acted; None: not known.")
    times: int = Field(1, ge=1, description="Number of consecutive times that this happened.")
    last_step: int | None = Field(None, ge=0, description="The step of the last time.")
    cause: str = Field(description="What went wrong.")
    action: str = Field(description="What the run did.")
    steps_again: int = Field(0, ge=0, description="Steps that were computed again.")
    seconds: float | None = Field(None, ge=0, description="From the failure to the next step, if it was measured.")
    advice: str | None = Field(None, description="What to change in the next run.")


def troubles_of(events: Iterable[Mapping[str, Any]]) -> tuple[Trouble, ...]:
    """Return the troubles of a run in the order in which they happened, from its events.

    Steps that were skipped one after another are one trouble. A run that is killed between a rollback and its next
    checkpoint computes the same steps again, and reports the same troubles and the same rollback: they count once.
    """
    found: list[Trouble] = []
    known = set[tuple[Any, ...] | None]()
    told: dict[tuple[Any, ...], int] = {}  # (remedy, number, step) of each return -> how many troubles there were then
    for one in events:
        data: Mapping[str, Any] = one.get("data", {})
        if one.get("kind") != "remedy" or "earlier" in (data.get("stage"), data.get("cause")):
            continue
        if data.get("seconds") is not None:  # training goes on
            same = [number for number, earlier in enumerate(found) if earlier.remedy == data["remedy"]]
            for number in same[-1:]:
                found[number] = found[number].model_copy(update={"seconds": data["seconds"]})
        elif data.get("stage") == "skip" and _is_known_skip(found, data["step"]):
            pass
        elif found and _goes_on(found[-1], data):
            again = {"times": found[-1].times + 1, "last_step": data["step"]}
            found[-1] = found[-1].model_copy(update=again)
        elif (state := _lasting_state(data)) is not None and state in known:
            pass  # told again after a start of the workers
        elif "cause" in data and "action" in data:  # others tell effects, or sum up
            found.append(_trouble(one["at"], data))
            known.add(state)
            if "number" in data:
                count = told.setdefault((data["remedy"], data["number"], data["step"]), len(found))
                found[count:] = [other for other in found[count:] if other.remedy != data["remedy"]]
                told = {key: earlier for key, earlier in told.items() if earlier <= count}
    return tuple(found)


def _is_known_skip(found: Sequence[Trouble], step: int) -> bool:
    """Whether this skip was reported before, and is reported again because the workers have started again.

    A run that has returned to an earlier state in the same group reports a new skip: its weights or rate differ.
    """
    started_again = False
    for one in reversed(found):
        if one.remedy in _STARTS_AGAIN:
            started_again = True
        elif one.last_step is not None:
            return step <= one.last_step
        elif one.remedy in _RETURNS and not started_again:
            return False
    return False


def _lasting_state(data: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Return what names a state that lasts: the host, the ranks and the cause of a slow rank, or overfitting."""
    if data.get("remedy") == OVERFITTING:
        return (OVERFITTING,)
    if data.get("remedy") != "straggler":
        return None
    return data.get("host"), tuple(data.get("ranks", ())), data.get("advice")  # each cause has its own advice


def _goes_on(last: Trouble, data: Mapping[str, Any]) -> bool:
    """Whether an event repeats the last trouble: another skipped step, or an attempt that ends for the same cause."""
    if data.get("remedy") != last.remedy:
        return False
    skips = data.get("stage") == "skip" and last.last_step is not None
    return skips or bool(last.remedy == MACHINE and last.cause == data.get("cause"))


def _trouble(at: str, data: Mapping[str, Any]) -> Trouble:
    names = ("remedy", "step", "cause", "action", "steps_again", "advice")
    known = {name: data[name] for name in names if name in data}
    last_step = data["step"] if data.get("stage") == "skip" or data["remedy"] == MACHINE else None
    return Trouble.model_validate({"at": at, "last_step": last_step, **known})


def format_trouble(trouble: Trouble) -> str:
    """Describe a trouble in one line: its cause, what the run did, and its cost."""
    cost = [] if trouble.seconds is None else [f"{trouble.seconds:.0f} s"]
    if trouble.steps_again:
        cost.append(f"{many(trouble.steps_again, 'step')} computed again")
    again = f" ({trouble.times} times, until step {trouble.last_step})" if trouble.times > 1 else ""
    return f"{trouble.cause}: {trouble.action}{again}" + (f" (cost: {', '.join(cost)})" if cost else "")


def trouble_rows(troubles: Sequence[Trouble]) -> list[tuple[str, str]]:
    """Return lines for people, each with its name: the newest troubles, and what to change in the next run."""
    earlier = len(troubles) - _MOST_SHOWN
    rows = [("remedy", format_trouble(one)) for one in troubles[-_MOST_SHOWN:]]
    if earlier > 0:
        rows.insert(0, ("remedy", f"{many(earlier, 'trouble')} before, see the events"))
    newest = {one.remedy: one.advice for one in troubles if one.advice is not None}
    return rows + [("next time", advice) for advice in newest.values()]
