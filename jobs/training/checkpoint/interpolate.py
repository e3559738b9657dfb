"""Mixes the weights of a run's model with those that the run started from, one tensor at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from safetensors import safe_open

from cluster.errors import DataError
from jobs.model_files.directory import local_model_dir, weight_files
from jobs.run.paths import JobPaths
from jobs.spec.load import load_spec
from jobs.storage import files as storage
from jobs.training.checkpoint.to_model import check_target, export_run, has_own_export, removed_on_failure
from jobs.training.model.export import MAX_SHARD_BYTES, write_weights

_NAMED = 3  # tensors that an error names


def export_interpolated(run_root: str, to: str, base_weight: float, say: Callable[[str], None] = print) -> str:
    """Write (1 - base_weight) x the run's weights + base_weight x the weights that it started from.

    Args:
        to: directory or URL; not that of one of the two models.

    Returns:
        `to`.

    Raises:
        DataError: the two models have other tensors or shapes; or there is nothing to export.
    """
    paths = JobPaths(run_root)
    spec = load_spec(paths.spec)
    if spec.method.kind != "full":
        raise DataError(f"{paths.name} has trained an adapter, which has no weights in the base model to mix with")
    check_target(to, paths)
    base = local_model_dir(spec.model.path)
    with tempfile.TemporaryDirectory(prefix="fleetune-export-") as scratch:
        if storage.is_local(paths.model) and has_own_export(paths):
            tuned = storage.local_path(paths.model)
        else:
            tuned = export_run(run_root, scratch, say)
        with removed_on_failure(to):
            interpolate(tuned, base, to, base_weight)
    return to


def interpolate(tuned: str, base: str, to: str, base_weight: float, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Write the mixed weights, and copy the other files of `tuned`. At most one file's tensors are in memory.

    Args:
        tuned, base: local directories with safetensors; `base` may have more tensors.
        to: directory or URL.

    Raises:
        DataError: a tensor of `tuned` is not in `base`, or has another shape there.
    """
    with _opened(tuned) as ours, _opened(base) as theirs:
        _check_same(_shapes(ours), _shapes(theirs), base)

        def mixed() -> Iterator[tuple[str, torch.Tensor]]:
            for name, file in ours.items():
                tensor = file.get_tensor(name)
                if tensor.is_floating_point():
                    base_tensor = theirs[name].get_tensor(name).float()
                    tensor = torch.lerp(tensor.float(), base_tensor, base_weight).to(tensor.dtype)
                yield name, tensor

        sizes = [(name, file.get_tensor(name).nbytes) for name, file in ours.items()]  # views of the mapped files
        write_weights(to, sizes, mixed(), max_shard_bytes)
    with tempfile.TemporaryDirectory(prefix="fleetune-export-") as scratch:
        ignored = shutil.ignore_patterns("*.safetensors", "*.safetensors.index.json")
        shutil.copytree(tuned, scratch, ignore=ignored, dirs_exist_ok=True)  # `put_dir` may move files
        storage.put_dir(scratch, to, last="config.json")


def _check_same(ours: dict[str, tuple[int, ...]], theirs: dict[str, tuple[int, ...]], base: str) -> None:
    wrong = [
        f"{name} {list(shape)} ({'missing' if name not in theirs else list(theirs[name])} there)"
        for name, shape in ours.items()
        if theirs.get(name) != shape
    ]
    if wrong:
        raise DataError(
            f"the model cannot be mixed with {base}, from which the run started: {len(wrong)} of {len(ours)} tensors "
            f"are not there, or have another shape: {', '.join(wrong[:_NAMED])}. Only weights of the same shapes mix; "
            "a new classification head has no counterpart. Export the model without --base-weight"
        )


@contextlib.contextmanager
def _opened(folder: str) -> Iterator[dict[str, Any]]:
    """Map the files of a directory into memory, and yield the file of each tensor by the tensor's name."""
    with contextlib.ExitStack() as stack:
        paths = [os.path.join(folder, name) for name in weight_files(folder)]
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        yield {name: file for file in files for name in file.keys()}  # noqa: SIM118


def _shapes(files: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(file.get_slice(name).get_shape()) for name, file in files.items()}
