"""Remembers on this machine which models passed the dry run, so that later runs skip it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from importlib.metadata import version
from pathlib import Path

from jobs.spec.finetune import Spec

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_VERSIONS = ("fleetune", "torch", "transformers", "tokenizers")


def was_tried(spec: Spec, model_dir: str) -> bool:
    """Whether this configuration and tokenizer have passed for this task with the same versions of libraries."""
    return _mark(spec, model_dir).exists()


def remember(spec: Spec, model_dir: str) -> None:
    """Note that the model has passed. If the cache cannot be written, the next run takes some seconds longer."""
    mark = _mark(spec, model_dir)
    with contextlib.suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _mark(spec: Spec, model_dir: str) -> Path:
    digest = hashlib.sha256()
    for part in (*map(version, _VERSIONS), spec.model.model_dump_json(exclude={"path"}), str(spec.num_labels)):
        digest.update(f"{part}\n".encode())
    for path in sorted(Path(model_dir).iterdir()):
        if path.is_file() and path.suffix not in _WEIGHTS:
            digest.update(f"{path.name}\n".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return Path(os.path.expanduser("~/.cache/fleetune/tried")) / digest.hexdigest()
