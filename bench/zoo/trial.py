"""What is tried with one architecture, and what is said about it."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import pathlib
import struct
import time
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bench.zoo.cases import Case, write_spec
from bench.zoo.gang import ROOT, Gang
from jobs.run.paths import JobPaths
from jobs.storage.journal import read_journal

STEPS, STOP_AT = 5, 3
TOLERANCE = 1e-4  # of losses, relative
TIMEOUT_S = 240.0

Outcome = Literal["trains", "warned", "refused", "failed", "not made", "not tried"]


@dataclass(frozen=True)
class Result:
    """The verdict on one architecture; what was not reached is None."""

    model_type: str
    task: str
    class_name: str
    outcome: Outcome
    reason: str | None = None  # why it is not `trains`
    parameters: int | None = None
    # Largest relative differences of losses to those of a plain loop in one process:
    alone: float | None = None  # of one worker, which stops after some steps
    resume: float | None = None  # of the two workers that go on from its checkpoint
    packed: bool | None = None  # False: samples are trained in rows of their own
    keys: bool | None = None  # the export has the names and shapes of the source
    seconds: float = 0.0
    code: str = ""  # fingerprint of the code that was tried

    def as_json(self) -> str:
        return json.dumps(asdict(self))


def try_case(case: Case, folder: pathlib.Path, solo: Gang, duo: Gang) -> Result:
    """Build, check, train on one worker, stop, go on with two, export. Never raises for what a model does."""
    started, code = time.monotonic(), code_fingerprint()
    seen = _seen(case, folder, solo, duo)
    seconds = round(time.monotonic() - started, 1)
    return Result(case.model_type, case.task, case.class_name, **seen, seconds=seconds, code=code)


def _seen(case: Case, folder: pathlib.Path, solo: Gang, duo: Gang) -> dict[str, Any]:
    model = folder / case.name / "model"
    common = {"model": str(model), "type": case.model_type, "class": case.class_name, "stop_at": None, "export": False}
    on_one, on_two = (common | {"spec": str(write_spec(folder, case, STEPS, number))} for number in (1, 2))
    made = solo.ask(on_two | {"do": "make"}, TIMEOUT_S)
    if problem := made.get("error") or made.get("not_made"):
        return {"outcome": "not made", "reason": problem}
    seen = {"parameters": made.get("parameters")}
    if "refused" in made:
        return seen | {"outcome": "refused", "reason": made["refused"].replace(f"model.path {model}: ", "")}
    if "not_built" in made:
        return seen | {"outcome": "failed", "reason": f"not refused, but not built: {made['not_built']}"}
    run = str(folder / case.name / "run")
    job = {"run": run, "prepared": made["prepared"]}
    plain = solo.ask(on_two | job | {"do": "plain"}, TIMEOUT_S)
    if "error" in plain:
        return seen | {"outcome": "not made", "reason": f"a plain loop fails: {plain['error']}"}
    orders = (
        ("training", solo, on_one | job | {"do": "train", "stop_at": STOP_AT}),
        ("resume and export", duo, on_two | job | {"do": "train", "export": True}),
        ("export from the checkpoint", solo, on_two | job | {"do": "rebuild"}),
    )
    answers: dict[str, Any] = {}
    for what, gang, order in orders:
        answer = gang.ask(order, TIMEOUT_S)
        if "error" in answer:
            return seen | {"outcome": "failed", "reason": f"{what}: {answer['error']}"}
        answers |= answer
    seen["packed"] = None if case.task != "causal-lm" else not answers["unpack"]
    if not answers["same"]:
        return seen | {"outcome": "failed", "reason": "the export from the checkpoint is not that of the run"}
    return seen | judged(losses(run), plain["losses"], tensors(model) == tensors(run + "/model"), answers["padding"])


def judged(found: list[float], plain: list[float], same_keys: bool, said: bool = False) -> dict[str, Any]:
    """The verdict on losses of one worker that stopped, then of two that went on, against plain PyTorch's. Pure.

    Args:
        said: A warning of the run says that padding changes what the model computes.
    """
    parts = {
        "alone": difference(found[:STOP_AT], plain[:STOP_AT]),
        "resume": difference(found[STOP_AT:], plain[STOP_AT:]),
    }
    differences = [f"{name} differs by {value:.1e}" for name, value in parts.items() if not value <= TOLERANCE]
    wrong = [] if same_keys else ["the export has other tensors than the source"]
    seen = {**parts, "keys": same_keys}
    if differences and said and not wrong:
        return seen | {"outcome": "warned", "reason": f"a warning says that padding counts: {'; '.join(differences)}"}
    if reason := "; ".join([*differences, *wrong]):
        return seen | {"outcome": "failed", "reason": reason}
    return seen | {"outcome": "trains"}


def difference(found: list[float], expected: list[float]) -> float:
    """The largest relative difference; infinite where a value is missing or not finite."""
    if len(found) != len(expected) or not all(map(math.isfinite, [*found, *expected])):
        return math.inf
    return max((abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True)), default=math.inf)


def losses(run: str) -> list[float]:
    return [record["loss"] for record in read_journal(JobPaths(run).metrics)]


def tensors(folder: str | pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in a directory's safetensors."""
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        found |= {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    return found


@functools.cache
def code_fingerprint() -> str:
    """A short digest of the files that decide what a trial sees of any type; 8 hexadecimal digits."""
    patterns = (
        "jobs/training/**/*.py",
        "jobs/data/**/*.py",
        "jobs/model_files/architecture.py",
        "jobs/model_files/directory.py",
        "bench/zoo/*.py",
    )
    files = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    digest = hashlib.sha256()
    for path in [*files, ROOT / "tests/support/reference.py"]:
        if path.name not in ("page.py", "__main__.py", "tiny.py"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
