"""What a checkpoint is on storage: files of many workers, and one marker that makes it exist. Light: no torch.

    checkpoints/step-00000120/
        rank-00000-of-00002.<token>.safetensors   this rank's slices of weights and Adam's moments
        rank-00000-of-00002.<token>.json          which slices these are, and checksums (`Part`); after the file
        commit.json                               the marker (`Commit`), last of all; names the parts

The token is drawn anew by each worker group, so that what a killed one has left behind is never taken for a part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Final, NamedTuple

from pydantic import ConfigDict, Field, ValidationError

from jobs.errors import StorageError, StorageOutage
from jobs.frozen import Frozen
from jobs.run.paths import JobPaths, checkpoint_step
from jobs.storage import files as storage
from jobs.storage.tensor_file import Bytes, Damaged, ShardFile, Want, read_ranges

FORMAT_VERSION: Final = 1
COMMIT_NAME: Final = "commit.json"
KINDS: Final = ("weight", "exp_avg", "exp_avg_sq")  # fp32 each
_FP32_BYTES: Final = 4


class Slice(NamedTuple):
    """Elements start .. start + numel - 1 of a parameter that is laid flat."""

    parameter: str
    start: int
    numel: int


class Part(Frozen):
    """What one rank wrote. The file has, for every slice and kind, the tensor `kind:parameter`; flat, fp32."""

    rank: int
    slices: tuple[Slice, ...]
    file: ShardFile
    buffers: dict[str, tuple[str, tuple[int, ...]]] = Field(
        default_factory=dict, description="Of rank 0: dtype and shape of each buffer of the model, `buffer:name`."
    )


class PartEntry(Frozen):
    """A part's description, named and pinned by the commit."""

    name: str
    sha256: str


class Best(Frozen):
    """The best held-out score so far, and the step that has it."""

    metric: str
    greater_is_better: bool
    step: int
    score: float


class Commit(Frozen):
    """The marker: everything of a checkpoint but its tensors."""

    # A metric of somebody's own may be no number, which must not cost the checkpoint.
    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="strings")

    version: int = FORMAT_VERSION
    step: int = Field(description="Optimizer steps that are done.")
    num_workers: int
    per_device_train_batch_size: int = Field(description="Dropout is drawn for each micro-batch, and so follows this.")
    parts: tuple[PartEntry, ...] = Field(description="One for each rank, in order.")
    shapes: dict[str, tuple[int, ...]] = Field(description="Every trained parameter, in the model's order.")
    bytes: int = Field(description="Of all tensor files.")
    optimizer_step: int = Field(description="Updates that Adam has made; fewer than `step` where fp16 skipped some.")
    precision: str
    loss_scaler: dict[str, float] | None = Field(None, description="State of fp16's dynamic loss scale.")
    loss: float | None
    metrics: dict[str, float] = Field(description="The last eval_* that were measured after a step.")
    evaluated_at: int | None = Field(None, description="The step of `metrics`.")
    metrics_before: dict[str, float]
    best: Best | None = None
    chain: str = Field(description="Hash chain over the samples of all steps so far; 16 hex digits.")
    data_fingerprint: str


def part_stem(rank: int, num_workers: int, token: str) -> str:
    return f"rank-{rank:05d}-of-{num_workers:05d}.{token}"


def entry_of(name: str, content: bytes) -> PartEntry:
    return PartEntry(name=name, sha256=hashlib.sha256(content).hexdigest())


def saved_steps(paths: JobPaths) -> list[int]:
    """Steps of all checkpoint directories, whole or not, ascending."""
    steps = (checkpoint_step(name) for name in storage.list_names(paths.checkpoints))
    return sorted(step for step in steps if step is not None)


def committed_steps(paths: JobPaths) -> list[int]:
    """Steps whose checkpoint has its marker, ascending."""
    return [step for step in saved_steps(paths) if storage.exists(commit_path(paths, step))]


def commit_path(paths: JobPaths, step: int) -> str:
    return storage.join(paths.checkpoint(step), COMMIT_NAME)


def read_commit(paths: JobPaths, step: int) -> Commit:
    """The marker of a checkpoint.

    Raises:
        StorageError: a newer release wrote it.
        StorageOutage: the storage does not answer now.
        Damaged: it cannot be read, or is no marker.
    """
    path = commit_path(paths, step)
    try:
        raw = json.loads(storage.read_bytes(path))
        version = raw.get("version", 0)
        if version <= FORMAT_VERSION:
            return Commit.model_validate(raw)
    except StorageOutage:
        raise
    except (StorageError, ValueError, AttributeError, ValidationError) as error:
        raise Damaged(f"{path} cannot be read: {error}") from error
    raise StorageError(
        f"{path} was written by a newer release (format {version}, this one reads {FORMAT_VERSION}): upgrade Fleetune"
    )


def read_parts(paths: JobPaths, commit: Commit) -> tuple[Part, ...]:
    """What every rank wrote, as the commit pins it.

    Raises:
        Damaged: a description is missing, or is another one.
    """
    parts = []
    for entry in commit.parts:
        path = storage.join(paths.checkpoint(commit.step), entry.name)
        try:
            content = storage.read_bytes(path)
        except StorageOutage:  # it says nothing of the file
            raise
        except StorageError as error:
            raise Damaged(str(error)) from error
        if entry_of(entry.name, content) != entry:
            raise Damaged(f"{path} has other bytes than were written")
        parts.append(Part.model_validate_json(content))
    return tuple(parts)


def to_remove(whole: Sequence[int], limit: int, best: int | None, step: int) -> list[int]:
    """Checkpoints that are no longer kept once that of `step` is there: all but the newest `limit` and the best. Pure.

    Those of later steps do not count, and are left alone: a run that went back behind them found them damaged.
    """
    passed = sorted(one for one in whole if one <= step)
    return [one for one in passed[:-limit] if one != best]


def leftovers(saved: Sequence[int], whole: Sequence[int]) -> list[int]:
    """Directories without a marker that nobody writes to any more: older than the newest whole one. Pure."""
    return [step for step in saved if step not in whole and whole and step < max(whole)]


class Read(NamedTuple):
    """A slice of one kind, and the memory that it is to be read into."""

    kind: str
    slice: Slice
    into: Bytes  # fp32 elements of the slice, as bytes


def plan_reads(reads: Sequence[Read], parts: Sequence[Part]) -> dict[int, list[Want]]:
    """Which bytes of which parts hold the slices, however many ranks wrote them. Pure.

    Returns:
        Number of the part -> byte ranges of its file.

    Raises:
        Damaged: elements are in no part.
    """
    holders: dict[str, list[tuple[int, Slice]]] = {}
    for number, part in enumerate(parts):
        for held in part.slices:
            holders.setdefault(held.parameter, []).append((number, held))
    wants: dict[int, list[Want]] = {}
    for kind, wanted, into in reads:
        found = 0
        for number, held in holders.get(wanted.parameter, ()):
            low = max(wanted.start, held.start)
            high = min(wanted.start + wanted.numel, held.start + held.numel)
            if low < high:
                begin = parts[number].file.offsets[f"{kind}:{wanted.parameter}"] + (low - held.start) * _FP32_BYTES
                place = into[(low - wanted.start) * _FP32_BYTES : (high - wanted.start) * _FP32_BYTES]
                wants.setdefault(number, []).append(Want(begin, place))
                found += high - low
        if found != wanted.numel:
            raise Damaged(f"the checkpoint holds {found:,} of {wanted.numel:,} elements of {wanted.parameter}")
    return wants


def read_slices(folder: str, parts: Sequence[Part], reads: Sequence[Read]) -> None:
    """Read slices of a checkpoint, checked. Raises Damaged."""
    for number, wants in plan_reads(reads, parts).items():
        read_ranges(folder, parts[number].file, wants)
