"""Files of invented samples, quick to write and to tokenise."""

from __future__ import annotations

import json
import pathlib
import random

from jobs.spec.finetune import Spec

WORDS = ("river", "stone", "lamp", "over", "under", "seven", "green", "slow", "paper", "north", "wind", "glass")


def sentence(draw: random.Random, words: int = 12) -> str:
    return " ".join(draw.choices(WORDS, k=words))


def write_texts(path: pathlib.Path, rows: int, seed: int = 0, words: int = 12) -> str:
    """JSONL of `rows` different texts, of some 70 bytes where they have 12 words."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"text": f"{seed}-{number} {sentence(draw, words)}"}) + "\n")
    return str(path)


def text_spec(storage: pathlib.Path | str, model: str, train: object, **data: object) -> Spec:
    return Spec.model_validate(
        {
            "model": {"path": model, "task": "causal-lm"},
            "data": {"train": train, "format": "text", "seq_len": 256} | data,
            "storage_path": str(storage),
            "resources": {"gpus_per_worker": 0},
        }
    )
