"""The files of a checkpoint: parts of many workers, and one marker that makes the checkpoint exist. Light: no torch.

    checkpoints/step-00000120/
        rank-00000-of-00002.<token>.safetensors   this rank's slices of weights and of Adam's moments
        rank-00000-of-00002.<token>.json          index of the slices, with checksums (`Part`); written after the file
        commit.json                               the marker (`Commit`); written last, and names the parts

Each worker group draws a new token, so that files left by a killed group are never taken for parts.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from pydantic import ConfigDict, Field

from cluster.errors import StorageError, StorageOutage
from jobs.frozen import Frozen
from jobs.planning.replay import ReplayRaise
from jobs.run.attempts import newest_attempt
from jobs.run.paths import JobPaths, checkpoint_step
from jobs.storage import files as storage
from jobs.storage.outages import is_unrelated_to_file
from jobs.storage.tensor_file import Bytes, ShardFile, Want, read_ranges
from jobs.storage.versioned import Damaged, parse_versioned

FORMAT_VERSION: Final = 2
COMMIT_NAME: Final = "commit.json"
KINDS: Final = ("weight", "exp_avg", "exp_avg_sq")  # each is stored in fp32
_FP32_BYTES: Final = 4


class Slice(NamedTuple):
    """Elements start .. start + numel - 1 of a flattened parameter."""

    parameter: str
    start: int
    numel: int


class Part(Frozen):
    """The part that one rank wrote. For every slice and kind, the file has the flat fp32 tensor `kind:parameter`."""

    rank: int
    slices: tuple[Slice, ...]
    file: ShardFile
    buffers: dict[str, tuple[str, tuple[int, ...]]] = Field(
        default_factory=dict, description="Only of rank 0: dtype and shape of each buffer of the model, `buffer:name`."
    )


class PartEntry(Frozen):
    """Name and checksum of a part's index, as the commit records them."""

    name: str
    sha256: str


class Best(Frozen):
    """The best held-out score so far, and its step."""

    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="strings")  # see `Commit`

    metric: str
    greater_is_better: bool
    step: int
    score: float
    metrics: dict[str, float] = Field(default_factory=dict, description="All eval_* of that step.")
    confusion: tuple[tuple[int, ...], ...] | None = Field(
        None,
        description="Held-out samples of that step: true class by predicted; null: not known, or too large.",
    )
    improved_at: int | None = Field(
        None,
        description="Step of the newest score that was better than the best one before it by more than "
        "eval.early_stopping_threshold; null: `step`.",
    )

    @property
    def counted_from(self) -> int:
        """The step from which early stopping counts evaluations."""
        return self.step if self.improved_at is None else self.improved_at


def better_first(bests: Iterable[Best]) -> list[Best]:
    """Sort scores of one metric, the best one first."""
    return sorted(bests, key=lambda best: -best.score if best.greater_is_better else best.score)


class StepHistory(Frozen):
    """What a run remembers of its steps to tell outlying ones (see `jobs.remedies.outliers`)."""

    losses: tuple[float, ...] = Field((), description="Of the newest steps that changed the weights, oldest first.")
    norms: tuple[float, ...] = Field((), description="Norms of the gradients of the same steps.")
    lowest_losses: tuple[float, ...] = Field((), description="The eight consecutive losses with the lowest median.")
    lowest_at: int = Field(0, description="Number of the last step whose newest losses were the lowest.")
    lowest_compared_at: int = Field(0, description="Steps that were done when rows of theirs were last measured.")
    has_risen: bool = Field(False, description="The result: their loss was far higher then.")
    first_loss: float | None = Field(None, description="Of the first step, which no update precedes.")
    first_compared_at: int = Field(0, description="Steps that were done when its rows were last measured again.")
    first_loss_now: float | None = Field(None, description="The result, if the loss was far higher then.")
    held_out_rise: tuple[float, float] | None = Field(
        None, description="eval_loss before training and in the first evaluation, if it has risen far."
    )
    skipped: int = Field(0, description="Skipped steps, except those in which fp16 lowered its loss scale.")
    skipped_in_a_row: int = Field(0, description="Newest steps that were skipped, for any reason.")
    outliers: int = Field(0, description="Steps that were skipped because they were outlying.")
    outliers_in_a_row: int = 0
    skipped_for_loss: bool = Field(False, description="A step was skipped because its loss was outlying.")
    bad_data: bool = Field(False, description="The newest outliers are outlying with earlier weights too.")
    rollbacks: int = 0
    steps_again: int = Field(0, description="Steps that rollbacks have caused to be computed again.")
    rate_factor: float = Field(1.0, description="The learning rate of every step is multiplied by this.")
    barred: tuple[int, int] | None = Field(None, description="First and last + 1 step whose batch is left out, from 0.")
    batches_at_fault: bool | None = Field(
        None, description="Whether the batches left out last are outlying with earlier weights too; None: not known."
    )
    bad_batches: tuple[tuple[int, int], ...] = Field(
        (),
        description="First and last + 1 step of batches that are outlying with any weights; they are always left out.",
    )

    def counts(self) -> dict[str, float]:
        return self.model_dump(include={"outliers", "rollbacks", "steps_again", "rate_factor"})


class LossTrend(Frozen):
    """The losses that a run keeps in its checkpoints to detect overfitting (see `jobs.remedies.overfitting`)."""

    losses: float = Field(0.0, description="Sum of the training losses since the newest evaluation.")
    steps: int = Field(0, description="The number of these losses.")
    training: float | None = Field(None, description="Mean training loss between the two newest evaluations.")
    held_out: float | None = Field(None, description="Held-out loss of the newest evaluation.")
    best: float | None = Field(None, description="The lowest held-out loss.")
    best_at: int = Field(0, description="Its step; 0: before training.")
    training_at_best: float | None = Field(
        None, description="The value of `training` at `best_at`; if that is 0, at the first evaluation after it."
    )
    worse: int = Field(0, description="Number of newest evaluations in a row whose loss is clearly above `best`.")
    found: bool = Field(False, description="Overfitting was found and reported.")


class Commit(Frozen):
    """The marker of a checkpoint: all its contents except tensors."""

    # A user's metric may be NaN or infinite, and that must not prevent a checkpoint.
    model_config = ConfigDict(allow_inf_nan=True, ser_json_inf_nan="strings")

    version: int = FORMAT_VERSION
    step: int = Field(description="Optimizer steps that are done.")
    num_workers: int
    per_device_train_batch_size: int = Field(description="Rows of a micro-batch, which is the unit of dropout.")
    parts: tuple[PartEntry, ...] = Field(description="One for each rank, in the order of ranks.")
    shapes: dict[str, tuple[int, ...]] = Field(description="Shape of every trained parameter, in the model's order.")
    bytes: int = Field(description="Size of all tensor files together.")
    optimizer_step: int = Field(description="Updates that Adam has made; fewer than `step` if steps were skipped.")
    precision: str
    loss_scaler: dict[str, float] | None = Field(None, description="State of fp16's dynamic loss scale.")
    loss: float | None
    metrics: dict[str, float] = Field(description="The last eval_* that were measured after a step.")
    evaluated_at: int | None = Field(None, description="The step of `metrics`.")
    metrics_before: dict[str, float]
    best: Best | None = None
    eval_steps: int | None = Field(None, description="eval.eval_steps of the attempt.")
    set_aside: Best | None = Field(None, description="The best score before the run began again at its start.")
    history: StepHistory = Field(default_factory=StepHistory, description="See `jobs.remedies.outliers`.")
    trend: LossTrend = Field(default_factory=LossTrend, description="See `jobs.remedies.overfitting`.")
    rate_cuts: int = Field(0, description="How often forgetting has lowered the learning rate.")
    replay_raises: tuple[ReplayRaise, ...] = Field((), description="When forgetting has raised the weights of replay.")
    chain: str = Field(description="Hash chain over the samples of all steps so far; 16 hex digits.")
    data_fingerprint: str
    base_digest: str | None = Field(None, description="Of the frozen model's weights, if the run trains an adapter.")


def part_stem(rank: int, num_workers: int, token: str) -> str:
    return f"rank-{rank:05d}-of-{num_workers:05d}.{token}"


def entry_of(name: str, content: bytes) -> PartEntry:
    return PartEntry(name=name, sha256=hashlib.sha256(content).hexdigest())


def saved_steps(paths: JobPaths) -> list[int]:
    """List the steps of all checkpoint directories, complete or not, in ascending order."""
    steps = (checkpoint_step(name) for name in storage.list_names(paths.checkpoints))
    return sorted(step for step in steps if step is not None)


def committed_steps(paths: JobPaths) -> list[int]:
    """List the steps whose checkpoint has its marker, in ascending order."""
    return [step for step in saved_steps(paths) if storage.exists(commit_path(paths, step))]


def newest_step(paths: JobPaths) -> int:
    """Return the step of the newest checkpoint that has its marker; 0: there is none. Raises StorageError.

    Checkpoints that the newest worker group has passed over as damaged do not count, until they are written again.
    """
    damaged = newest_attempt(paths).get("passed_over", {})

    def counts(step: int) -> bool:
        return str(step) not in damaged or damaged[str(step)] != _marker_digest(paths, step)

    return max(filter(counts, committed_steps(paths)), default=0)


def newest_step_if_known(paths: JobPaths) -> int:
    """Return the step as `newest_step` does; 0 also if the storage fails."""
    with contextlib.suppress(StorageError):
        return newest_step(paths)
    return 0


def passed_over(paths: JobPaths, start: int) -> dict[str, str | None]:
    """Return the checkpoints that a worker group which is about to train from step `start` has passed over.

    Returns:
        SHA-256 of each marker, by its step; None: it cannot be read. Later, another digest means a new checkpoint.
    """
    return {str(step): _marker_digest(paths, step) for step in committed_steps(paths) if step > start}


def _marker_digest(paths: JobPaths, step: int) -> str | None:
    try:
        return hashlib.sha256(_read_whole(commit_path(paths, step))).hexdigest()
    except StorageOutage:
        raise
    except StorageError:
        return None


def commit_path(paths: JobPaths, step: int) -> str:
    return storage.join(paths.checkpoint(step), COMMIT_NAME)


def read_commit(paths: JobPaths, step: int) -> Commit:
    """Read the marker of a checkpoint.

    Raises:
        StorageError: a newer release wrote the marker, or it may not be read.
        StorageOutage: the storage does not answer now.
        Damaged: the marker cannot be read or parsed.
    """
    path = commit_path(paths, step)
    return parse_versioned(_read_whole(path), path, FORMAT_VERSION, Commit.model_validate)


def _read_whole(path: str) -> bytes:
    try:
        return storage.read_bytes(path)
    except StorageOutage:  # an outage does not mean that the file is damaged
        raise
    except StorageError as error:
        if is_unrelated_to_file(error):
            raise
        raise Damaged(str(error)) from error


def read_parts(paths: JobPaths, commit: Commit) -> tuple[Part, ...]:
    """Read the index of every part, and check it against the commit.

    Raises:
        Damaged: an index is missing or differs from the one that was written.
    """
    parts = []
    for entry in commit.parts:
        path = storage.join(paths.checkpoint(commit.step), entry.name)
        content = _read_whole(path)
        if entry_of(entry.name, content) != entry:
            raise Damaged(f"{path} has other bytes than were written")
        parts.append(Part.model_validate_json(content))
    return tuple(parts)


def to_remove(whole: Sequence[int], limit: int, best: int | None, step: int) -> list[int]:
    """List the checkpoints to remove after that of `step`: all but the newest `limit` and the best. Pure.

    Later checkpoints neither count nor are removed: the run found them damaged when it went back to an earlier one.
    """
    passed = sorted(one for one in whole if one <= step)
    return [one for one in passed[:-limit] if one != best]


def leftovers(saved: Sequence[int], whole: Sequence[int]) -> list[int]:
    """List directories without a marker that are older than the newest complete one: no process writes them. Pure."""
    return [step for step in saved if step not in whole and whole and step < max(whole)]


class Read(NamedTuple):
    """A slice of one kind, and the memory into which it is read."""

    kind: str
    slice: Slice
    into: Bytes  # fp32 elements of the slice, as bytes


def plan_reads(reads: Sequence[Read], parts: Sequence[Part]) -> dict[int, list[Want]]:
    """Find the bytes of the parts that hold the slices, however many ranks wrote the parts. Pure.

    Returns:
        Byte ranges to read, by the number of the part.

    Raises:
        Damaged: some elements are in no part.
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
    """Read slices of a checkpoint and verify their checksums. Raises Damaged."""
    for number, wants in plan_reads(reads, parts).items():
        read_ranges(folder, parts[number].file, wants)
