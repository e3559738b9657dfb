"""Caches on this machine, for later runs: traces of models, the speed of the cores, which models passed the dry run.

Light to import.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from cluster.errors import StorageError
from jobs.model_files.directory import WEIGHTS, safetensors_header, weight_files
from jobs.planning.memory import ModelTrace
from jobs.planning.precision import Precision
from jobs.spec.finetune import Spec
from jobs.storage import files as storage

_VERSIONS = ("fleetune", "torch", "transformers")
_TRIED_WITH = (*_VERSIONS, "tokenizers")
_JOBS = Path(__file__).parents[1]
# Code that traces a model or tries it: what other code has cached is not used.
_CODE = ("preflight/*.py", "planning/*.py", "training/model/*.py", "training/loop/loss.py")
_SPEED = TypeAdapter(tuple[float, float])
_TRACE = TypeAdapter(ModelTrace)
Value = TypeVar("Value")


def cached_trace(
    spec: Spec, model_dir: str, precision: Precision, on_gpu: bool, compute: Callable[[], ModelTrace]
) -> ModelTrace:
    """Return the cached trace of this model for this task, row length, precision, device and strategy, or make it."""
    return _cached("traces", _of_trace(spec, model_dir, precision, on_gpu), _TRACE, compute)


def is_cached(spec: Spec, model_dir: str, precision: Precision, on_gpu: bool) -> bool:
    """Whether the trace is in the cache."""
    return _file("traces", _of_trace(spec, model_dir, precision, on_gpu)).exists()


def _of_trace(spec: Spec, model_dir: str, precision: Precision, on_gpu: bool) -> tuple[str, ...]:
    of_adapter = () if spec.method.kind == "full" else (version("peft"),)
    # An adapter also trains the parameters that the weights lack.
    weights = [] if spec.method.kind == "full" else Path(model_dir).glob("*.safetensors")
    return (
        *map(version, _VERSIONS),
        *of_adapter,
        spec.model.model_dump_json(exclude={"path"}),
        spec.method.model_dump_json(),
        spec.lora.model_dump_json(),
        spec.prompt.model_dump_json(),
        str((spec.num_labels, spec.data.seq_len, spec.packed, precision, on_gpu)),
        str((spec.train.gradient_checkpointing, spec.train.zero.stage == 3)),
        Path(model_dir, "config.json").read_text(errors="replace"),
        str(sorted((path.name, path.stat().st_size) for path in weights)),
        *_code(),
    )


def _code() -> Iterator[str]:
    return (path.read_text() for pattern in _CODE for path in sorted(_JOBS.glob(pattern)))


def cached_cpu_speed(cores: int, compute: Callable[[], tuple[float, float]]) -> tuple[float, float]:
    """Return the speed of this number of cores (see `cpu_speed`). It is not cached if the machine is busy."""
    is_idle = os.getloadavg()[0] < (os.cpu_count() or 1) / 2
    return _cached("speeds", (version("torch"), os.uname().nodename, str(cores)), _SPEED, compute, is_idle)


def _cached(
    kind: str, parts: Iterable[str], adapter: TypeAdapter[Value], compute: Callable[[], Value], keeps: bool = True
) -> Value:
    file = _file(kind, parts)
    with contextlib.suppress(OSError, ValidationError):
        return adapter.validate_json(file.read_bytes())
    made = compute()
    if keeps:
        with contextlib.suppress(StorageError):
            storage.write_bytes(str(file), adapter.dump_json(made))
    return made


def _file(kind: str, parts: Iterable[str]) -> Path:
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return Path(os.path.expanduser("~/.cache/fleetune")) / kind / f"{digest}.json"


def was_tried(spec: Spec, model_dir: str) -> bool:
    """Whether this model has passed for this task and method, with the same configuration, shapes and code."""
    return _mark(spec, model_dir).exists()


def remember_tried(spec: Spec, model_dir: str) -> None:
    """Note that the model has passed. If the cache cannot be written, the next run takes some seconds longer."""
    mark = _mark(spec, model_dir)
    with contextlib.suppress(OSError):
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _mark(spec: Spec, model_dir: str) -> Path:
    parts = [*map(version, _TRIED_WITH), *_code(), spec.model.model_dump_json(exclude={"path"}), str(spec.num_labels)]
    if spec.method.kind != "full":
        parts += [version("peft"), spec.method.kind, spec.lora.model_dump_json(), spec.prompt.model_dump_json()]
    weights = weight_files(model_dir)
    for path in sorted(Path(model_dir).iterdir()):
        if path.is_file() and (path.name in weights or path.suffix not in WEIGHTS):
            content = safetensors_header(str(path)) if path.name in weights else path.read_bytes()
            parts += [path.name, hashlib.sha256(content).hexdigest()]
    return _file("tried", parts)
