"""Score a model that a job of the queue has trained, as a job of its own (examples/evaluate.yaml).

    python examples/evaluate.py SAMPLES.csv [MODEL_DIR]

Without MODEL_DIR: the model of the run that this job comes after. Each process takes its share of the samples.
"""

from __future__ import annotations

import csv
import os
import sys
import warnings
from random import Random

MOST_SAMPLES = 200
BATCH = 32


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python examples/evaluate.py SAMPLES.csv [MODEL_DIR]")
    parent = os.environ.get("FLEETUNE_PARENT_RUN")
    if len(sys.argv) == 2 and not parent:
        sys.exit("no model: give MODEL_DIR, or queue this with --after JOB, a job that trains one")
    model_dir = sys.argv[2] if len(sys.argv) == 3 else f"{parent}/model"
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    warnings.simplefilter("ignore")
    with open(sys.argv[1], newline="", encoding="utf-8") as file:
        every = list(csv.DictReader(file))
    rows = Random(0).sample(every, min(MOST_SAMPLES, len(every)))[rank::world_size]  # the file may be sorted by label
    right = count_right(model_dir, rows)
    print(f"{right} of {len(rows)} are right: {right / max(len(rows), 1):.3f}")


def count_right(model_dir: str, rows: list[dict[str, str]]) -> int:
    """Of rows with a `text` and the name of a `label`."""
    from classify import classify

    found: list[str] = []
    for start in range(0, len(rows), BATCH):
        found += [label for label, _ in classify(model_dir, [row["text"] for row in rows[start : start + BATCH]])]
    return sum(label == row["label"] for label, row in zip(found, rows, strict=True))


if __name__ == "__main__":
    main()
