"""Models, data and specs of the planted failures, sound ones and damaged ones."""

from __future__ import annotations

import functools
import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import tiny

ROWS = 160
STEPS = 12
SAVED = 4  # steps between two checkpoints


class Workshop:
    """Makes every model and data file once, in `folder`, when a case asks for it by its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @functools.cache  # noqa: B019  # there is one workshop
    def model(self, name: str) -> Path:
        """`llama`, `gpt2` or `bert`; `llama cut`: that model with the damage of this name."""
        kind, _, damage = name.partition(" ")
        if not damage:
            return tiny.save_model(self.folder / name, kind)
        folder = self.folder / name.replace(" ", "-")
        shutil.copytree(self.model(kind), folder)
        DAMAGES[damage](folder)
        return folder

    @functools.cache  # noqa: B019
    def data(self, name: str) -> Path:
        content, ending = DATA[name]
        file = self.folder / f"{name.replace(' ', '-')}.{ending}"
        file.write_bytes(content())
        return file


def spec_text(raw: dict[str, Any]) -> str:
    """Write a spec as YAML; JSON is YAML too."""
    return json.dumps(raw, indent=1)


def spec_of(place: Workshop, storage: str, model: str, data: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Make a spec as a user would write it; `changes` are by dotted name."""
    raw = tiny.written(storage, place.model(model), place.data(data), classify=model.startswith("bert"))
    raw["train"] = {
        "learning_rate": 1e-3, "max_steps": STEPS, "per_device_train_batch_size": 2, "global_batch_size": 8,
    }  # fmt: skip
    raw |= {"checkpoint": {"save_steps": SAVED}, "eval": {"eval_on_start": False}}
    return tiny.changed(raw, changes)


def _texts(count: int = ROWS) -> bytes:
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in tiny.sentences(count))


def _labelled(label: Callable[[int], object] = lambda number: number % 3) -> bytes:
    rows = [{"text": text, "label": label(number)} for number, text in enumerate(tiny.sentences(ROWS))]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _broken_lines() -> bytes:
    lines = _texts().splitlines(keepends=True)
    return b"".join(line[:-5] + b"\n" if number % 10 == 3 else line for number, line in enumerate(lines))


DATA: dict[str, tuple[Callable[[], bytes], str]] = {
    "text": (_texts, "jsonl"),
    "labelled": (_labelled, "jsonl"),
    "empty": (lambda: b"", "jsonl"),
    "broken lines": (_broken_lines, "jsonl"),
    "other column": (lambda: _texts().replace(b'"text"', b'"txt"'), "jsonl"),
    "other label": (lambda: _labelled(lambda number: 7 if number == 100 else number % 3), "jsonl"),
    "cut gzip": (lambda: gzip.compress(_texts(4000))[:-2000], "jsonl.gz"),
    "latin-1": (lambda: b'{"text": "caf\xe9 in the street"}\n' * ROWS, "jsonl"),
}


def _change_config(**values: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return damage


def _cut_weights(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5000])


def _spoil_weights(folder: Path) -> None:
    """Make one number of one tensor NaN, as a run leaves it that has diverged."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _more_tokens(folder: Path) -> None:
    """Give the tokenizer tokens for which the embedding has no rows, some of which the data has."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra-{number}>" for number in range(300)])
    tokenizer.add_tokens([f"film {word}" for word in tiny.WORDS.split()])
    tokenizer.save_pretrained(folder)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut": _cut_weights,
    "spoilt": _spoil_weights,
    "resized": _change_config(intermediate_size=96),
    "tokens": _more_tokens,
}
