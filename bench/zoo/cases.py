"""The architectures of the installed transformers that Fleetune's tasks cover, and the job that each is tried with."""

from __future__ import annotations

import json
import pathlib
from dataclasses import dataclass
from typing import get_args

from jobs.model_files.architecture import class_names, transformers_root
from jobs.spec.finetune import Task
from jobs.spec.load import dump_spec
from tests.support import tiny

CLASSES = 3


@dataclass(frozen=True)
class Case:
    """One model type under one task."""

    model_type: str
    task: Task
    class_name: str

    @property
    def name(self) -> str:
        return f"{self.model_type}-{'lm' if self.task == 'causal-lm' else 'cls'}"


def all_cases() -> list[Case]:
    """Every type that transformers has a class for, sorted by name and task."""
    root = transformers_root()
    assert root is not None, "install transformers"
    found = [Case(kind, task, name) for task in get_args(Task) for kind, name in class_names(root, task).items()]
    return sorted(found, key=lambda case: case.name)


def write_data(folder: pathlib.Path) -> None:
    """Texts with and without classes, the same for all cases."""
    tiny.write_text(folder / "text.jsonl", 120)
    # No text is so short that a plain loop over CANINE, which shortens texts to a quarter, fails.
    texts = [f"the plot is not very quick {text}" for text in tiny.sentences(40)]
    rows = [{"text": text, "label": len(text) % CLASSES} for text in texts]
    (folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_spec(folder: pathlib.Path, case: Case, steps: int, num_workers: int) -> pathlib.Path:
    """The job's spec with everything at its default but the size of the run."""
    classify = case.task == "sequence-classification"
    spec = tiny.spec_of(
        folder,
        folder / case.name / "model",
        folder / ("labelled.jsonl" if classify else "text.jsonl"),
        classify=classify,
        data__seq_len=32,
        train__max_steps=steps,
        train__global_batch_size=4,
        train__per_device_train_batch_size=2,
        resources__num_workers=num_workers,
    )
    target = folder / case.name / f"on-{num_workers}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(dump_spec(spec))
    return target
