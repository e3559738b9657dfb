"""Remembers on this machine which models passed the dry run, so that later runs skip it."""

from __future__ import annotations

import contextlib
import hashlib
import os
from importlib.metadata import version
from pathlib import Path

from jobs.model_files.directory import WEIGHTS, safetensors_header, weight_files
from jobs.spec.finetune import Spec

_VERSIONS = ("fleetune", "torch", "transformers", "tokenizers")


def was_tried(spec: Spec, model_dir: str) -> bool:
    """Whether this model has passed for this task and method, with the same configuration, shapes and libraries."""
    return _mark(spec, model_dir).exists()


def remember(spec: Spec, model_dir: str) -> None:
    """Note that the model has passed. If the cache cannot be written, the next run takes some seconds longer."""
    mark = _mark(spec, model_dir)
    with contextlib.suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _mark(spec: Spec, model_dir: str) -> Path:
    digest = hashlib.sha256()
    parts = [*map(version, _VERSIONS), spec.model.model_dump_json(exclude={"path"}), str(spec.num_labels)]
    if spec.method.kind != "full":
        parts += [version("peft"), spec.method.kind, spec.lora.model_dump_json(), spec.prompt.model_dump_json()]
    for part in parts:
        digest.update(f"{part}\n".encode())
    weights = weight_files(model_dir)
    for path in sorted(Path(model_dir).iterdir()):
        if path.is_file() and (path.name in weights or path.suffix not in WEIGHTS):
            digest.update(f"{path.name}\n".encode())
            content = safetensors_header(str(path)) if path.name in weights else path.read_bytes()
            digest.update(hashlib.sha256(content).digest())
    return Path(os.path.expanduser("~/.cache/fleetune/tried")) / digest.hexdigest()
